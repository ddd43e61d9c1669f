/* A Vulkan layer that writes down which compute shaders a queue is given to run.
 *
 * The loader puts it between a program and the driver (VK_INSTANCE_LAYERS). It changes nothing and
 * passes every call on. A dispatch counts when its command buffer is submitted, not when it is
 * recorded: a buffer may be recorded once and submitted often, or never. A shader is told by a hash
 * of its code and the name of its entry point; specialization constants, which hold sizes, are left
 * out.
 *
 * The process that is watched loads this same library and calls the nn_meter_ functions below.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define EXPORT __attribute__((visibility("default")))
#define UNKNOWN 0 /* instead of a hash: the dispatch ran what this layer did not see being made */
#define BUCKETS 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* --- lists of hashes, and maps from handles to them ------------------------------------------- */

typedef struct {
    uint64_t *items;
    size_t count, room;
} List;

static int lost; /* memory ran out while something was written down */

static void append(List *list, uint64_t item) {
    if (list->count == list->room) {
        size_t room = list->room ? 2 * list->room : 16;
        uint64_t *items = realloc(list->items, room * sizeof *items);
        if (!items) {
            lost = 1;
            return;
        }
        list->items = items;
        list->room = room;
    }
    list->items[list->count++] = item;
}

static void append_all(List *list, const List *more) {
    for (size_t i = 0; i < more->count; i++) append(list, more->items[i]);
}

/* What is known of a shader module, a pipeline (its hash) or a command buffer (the pipeline that is
 * bound, and what was dispatched). Handles of one kind are unique in a device. */
typedef struct Known {
    void *device;
    uint64_t handle, hash;
    List dispatched;
    struct Known *next;
} Known;

typedef Known *Map[BUCKETS];

static Map modules, pipelines, commands;

static Known **place(Map map, void *device, uint64_t handle) {
    uint64_t mixed = (handle ^ (uint64_t)(uintptr_t)device) * UINT64_C(0x9E3779B97F4A7C15);
    Known **at = &map[mixed >> 52];
    while (*at && ((*at)->handle != handle || (*at)->device != device)) at = &(*at)->next;
    return at;
}

static Known *known(Map map, void *device, uint64_t handle) {
    Known **at = place(map, device, handle);
    if (!*at) {
        *at = calloc(1, sizeof **at);
        if (!*at) {
            lost = 1;
            return NULL;
        }
        (*at)->device = device;
        (*at)->handle = handle;
    }
    return *at;
}

static void forget(Known **at) {
    Known *gone = *at;
    *at = gone->next;
    free(gone->dispatched.items);
    free(gone);
}

static void forget_handle(Map map, void *device, uint64_t handle) {
    Known **at = place(map, device, handle);
    if (*at) forget(at);
}

static void forget_device(Map map, void *device) {
    for (size_t bucket = 0; bucket < BUCKETS; bucket++)
        for (Known **at = &map[bucket]; *at;)
            if ((*at)->device == device)
                forget(at);
            else
                at = &(*at)->next;
}

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t size) { /* FNV-1a */
    const unsigned char *byte = bytes;
    for (size_t i = 0; i < size; i++) hash = (hash ^ byte[i]) * UINT64_C(0x100000001B3);
    return hash;
}

static uint64_t hash_code(const VkShaderModuleCreateInfo *info) {
    return hash_bytes(UINT64_C(0xCBF29CE484222325), info->pCode, info->codeSize);
}

/* --- what the next ones in the chain are called by -------------------------------------------- */

#define DEVICE_CALLS(X)                                                                           \
    X(BeginCommandBuffer)                                                                         \
    X(CmdBindPipeline)                                                                            \
    X(CmdDispatch)                                                                                \
    X(CmdDispatchBase)                                                                            \
    X(CmdDispatchBaseKHR)                                                                         \
    X(CmdDispatchIndirect)                                                                        \
    X(CmdExecuteCommands)                                                                         \
    X(CreateComputePipelines)                                                                     \
    X(CreateShaderModule)                                                                         \
    X(DestroyDevice)                                                                              \
    X(DestroyPipeline)                                                                            \
    X(DestroyShaderModule)                                                                        \
    X(FreeCommandBuffers)                                                                         \
    X(QueueSubmit)                                                                                \
    X(QueueSubmit2)                                                                               \
    X(QueueSubmit2KHR)                                                                            \
    X(ResetCommandBuffer)

/* An instance or a device. All handles made from one share its first word, the loader's table. */
typedef struct Owner {
    void *table;
    VkInstance instance;
    PFN_vkGetInstanceProcAddr next_of_instance;
    PFN_vkDestroyInstance DestroyInstance;
    PFN_vkGetDeviceProcAddr next_of_device;
#define X(name) PFN_vk##name name;
    DEVICE_CALLS(X)
#undef X
    struct Owner *next;
} Owner;

static Owner *owners;
static uint64_t devices_made;

static void *table_of(const void *handle) { return *(void *const *)handle; }

static Owner *owner_of(const void *handle) { /* they come and go rarely, and stay in place */
    pthread_mutex_lock(&lock);
    Owner *owner = owners;
    while (owner && owner->table != table_of(handle)) owner = owner->next;
    pthread_mutex_unlock(&lock);
    return owner;
}

static void add_owner(Owner *owner, const void *handle) {
    owner->table = table_of(handle);
    pthread_mutex_lock(&lock);
    owner->next = owners;
    owners = owner;
    pthread_mutex_unlock(&lock);
}

static void drop_owner(Owner *owner) {
    pthread_mutex_lock(&lock);
    for (Owner **at = &owners; *at; at = &(*at)->next)
        if (*at == owner) {
            *at = owner->next;
            break;
        }
    pthread_mutex_unlock(&lock);
    free(owner);
}

/* --- what is watched -------------------------------------------------------------------------- */

static int watching;
static List seen;

static VKAPI_ATTR VkResult VKAPI_CALL watch_CreateShaderModule(
    VkDevice device, const VkShaderModuleCreateInfo *info, const VkAllocationCallbacks *memory,
    VkShaderModule *module) {
    VkResult result = owner_of(device)->CreateShaderModule(device, info, memory, module);
    if (result != VK_SUCCESS) return result;
    pthread_mutex_lock(&lock);
    Known *it = known(modules, table_of(device), (uint64_t)*module);
    if (it) it->hash = hash_code(info);
    pthread_mutex_unlock(&lock);
    return result;
}

static VKAPI_ATTR void VKAPI_CALL watch_DestroyShaderModule(
    VkDevice device, VkShaderModule module, const VkAllocationCallbacks *memory) {
    pthread_mutex_lock(&lock);
    forget_handle(modules, table_of(device), (uint64_t)module);
    pthread_mutex_unlock(&lock);
    owner_of(device)->DestroyShaderModule(device, module, memory);
}

static uint64_t hash_stage(void *device, const VkPipelineShaderStageCreateInfo *stage) {
    uint64_t hash = UNKNOWN;
    if (stage->module != VK_NULL_HANDLE) {
        Known *module = *place(modules, device, (uint64_t)stage->module);
        if (module) hash = module->hash;
    } else { /* the code may come with the stage */
        for (const VkBaseInStructure *more = stage->pNext; more; more = more->pNext)
            if (more->sType == VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO)
                hash = hash_code((const VkShaderModuleCreateInfo *)more);
    }
    return hash == UNKNOWN ? hash : hash_bytes(hash, stage->pName, strlen(stage->pName));
}

static VKAPI_ATTR VkResult VKAPI_CALL watch_CreateComputePipelines(
    VkDevice device, VkPipelineCache cache, uint32_t count,
    const VkComputePipelineCreateInfo *infos, const VkAllocationCallbacks *memory,
    VkPipeline *made) {
    VkResult result =
        owner_of(device)->CreateComputePipelines(device, cache, count, infos, memory, made);
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count; i++) {
        if (made[i] == VK_NULL_HANDLE) continue;
        Known *it = known(pipelines, table_of(device), (uint64_t)made[i]);
        if (it) it->hash = hash_stage(table_of(device), &infos[i].stage);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static VKAPI_ATTR void VKAPI_CALL watch_DestroyPipeline(
    VkDevice device, VkPipeline pipeline, const VkAllocationCallbacks *memory) {
    pthread_mutex_lock(&lock);
    forget_handle(pipelines, table_of(device), (uint64_t)pipeline);
    pthread_mutex_unlock(&lock);
    owner_of(device)->DestroyPipeline(device, pipeline, memory);
}

static void empty(VkCommandBuffer buffer) {
    pthread_mutex_lock(&lock);
    Known *it = known(commands, table_of(buffer), (uint64_t)(uintptr_t)buffer);
    if (it) {
        it->dispatched.count = 0;
        it->hash = UNKNOWN;
    }
    pthread_mutex_unlock(&lock);
}

static VKAPI_ATTR VkResult VKAPI_CALL watch_BeginCommandBuffer(
    VkCommandBuffer buffer, const VkCommandBufferBeginInfo *info) {
    empty(buffer);
    return owner_of(buffer)->BeginCommandBuffer(buffer, info);
}

static VKAPI_ATTR VkResult VKAPI_CALL watch_ResetCommandBuffer(
    VkCommandBuffer buffer, VkCommandBufferResetFlags flags) {
    empty(buffer);
    return owner_of(buffer)->ResetCommandBuffer(buffer, flags);
}

static VKAPI_ATTR void VKAPI_CALL watch_FreeCommandBuffers(
    VkDevice device, VkCommandPool pool, uint32_t count, const VkCommandBuffer *buffers) {
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count; i++)
        if (buffers[i])
            forget_handle(commands, table_of(device), (uint64_t)(uintptr_t)buffers[i]);
    pthread_mutex_unlock(&lock);
    owner_of(device)->FreeCommandBuffers(device, pool, count, buffers);
}

static VKAPI_ATTR void VKAPI_CALL watch_CmdBindPipeline(
    VkCommandBuffer buffer, VkPipelineBindPoint point, VkPipeline pipeline) {
    if (point == VK_PIPELINE_BIND_POINT_COMPUTE) {
        pthread_mutex_lock(&lock);
        Known *it = known(commands, table_of(buffer), (uint64_t)(uintptr_t)buffer);
        Known *bound = *place(pipelines, table_of(buffer), (uint64_t)pipeline);
        if (it) it->hash = bound ? bound->hash : UNKNOWN;
        pthread_mutex_unlock(&lock);
    }
    owner_of(buffer)->CmdBindPipeline(buffer, point, pipeline);
}

static void dispatched(VkCommandBuffer buffer) {
    pthread_mutex_lock(&lock);
    Known *it = known(commands, table_of(buffer), (uint64_t)(uintptr_t)buffer);
    if (it) append(&it->dispatched, it->hash);
    pthread_mutex_unlock(&lock);
}

static VKAPI_ATTR void VKAPI_CALL watch_CmdDispatch(
    VkCommandBuffer buffer, uint32_t x, uint32_t y, uint32_t z) {
    dispatched(buffer);
    owner_of(buffer)->CmdDispatch(buffer, x, y, z);
}

static VKAPI_ATTR void VKAPI_CALL watch_CmdDispatchIndirect(
    VkCommandBuffer buffer, VkBuffer sizes, VkDeviceSize offset) {
    dispatched(buffer);
    owner_of(buffer)->CmdDispatchIndirect(buffer, sizes, offset);
}

#define WATCH_BASE(name)                                                                          \
    static VKAPI_ATTR void VKAPI_CALL watch_##name(                                               \
        VkCommandBuffer buffer, uint32_t from_x, uint32_t from_y, uint32_t from_z, uint32_t x,    \
        uint32_t y, uint32_t z) {                                                                 \
        dispatched(buffer);                                                                       \
        owner_of(buffer)->name(buffer, from_x, from_y, from_z, x, y, z);                          \
    }
WATCH_BASE(CmdDispatchBase)
WATCH_BASE(CmdDispatchBaseKHR)

static VKAPI_ATTR void VKAPI_CALL watch_CmdExecuteCommands(
    VkCommandBuffer buffer, uint32_t count, const VkCommandBuffer *others) {
    pthread_mutex_lock(&lock);
    Known *it = known(commands, table_of(buffer), (uint64_t)(uintptr_t)buffer);
    for (uint32_t i = 0; it && i < count; i++) {
        Known *other = *place(commands, table_of(buffer), (uint64_t)(uintptr_t)others[i]);
        if (other) append_all(&it->dispatched, &other->dispatched);
    }
    pthread_mutex_unlock(&lock);
    owner_of(buffer)->CmdExecuteCommands(buffer, count, others);
}

static void submitted(VkCommandBuffer buffer) { /* the lock is held */
    Known *it = *place(commands, table_of(buffer), (uint64_t)(uintptr_t)buffer);
    if (watching && it) append_all(&seen, &it->dispatched);
}

static VKAPI_ATTR VkResult VKAPI_CALL watch_QueueSubmit(
    VkQueue queue, uint32_t count, const VkSubmitInfo *submits, VkFence fence) {
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < submits[i].commandBufferCount; k++)
            submitted(submits[i].pCommandBuffers[k]);
    pthread_mutex_unlock(&lock);
    return owner_of(queue)->QueueSubmit(queue, count, submits, fence);
}

#define WATCH_SUBMIT(name)                                                                        \
    static VKAPI_ATTR VkResult VKAPI_CALL watch_##name(                                           \
        VkQueue queue, uint32_t count, const VkSubmitInfo2 *submits, VkFence fence) {             \
        pthread_mutex_lock(&lock);                                                                \
        for (uint32_t i = 0; i < count; i++)                                                      \
            for (uint32_t k = 0; k < submits[i].commandBufferInfoCount; k++)                      \
                submitted(submits[i].pCommandBufferInfos[k].commandBuffer);                       \
        pthread_mutex_unlock(&lock);                                                              \
        return owner_of(queue)->name(queue, count, submits, fence);                               \
    }
WATCH_SUBMIT(QueueSubmit2)
WATCH_SUBMIT(QueueSubmit2KHR)

/* --- standing in the chain -------------------------------------------------------------------- */

static VkLayerInstanceCreateInfo *link_of_instance(const void *next) {
    for (VkLayerInstanceCreateInfo *it = (void *)next; it; it = (void *)it->pNext)
        if (it->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO &&
            it->function == VK_LAYER_LINK_INFO)
            return it;
    return NULL;
}

static VkLayerDeviceCreateInfo *link_of_device(const void *next) {
    for (VkLayerDeviceCreateInfo *it = (void *)next; it; it = (void *)it->pNext)
        if (it->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO &&
            it->function == VK_LAYER_LINK_INFO)
            return it;
    return NULL;
}

static VKAPI_ATTR VkResult VKAPI_CALL watch_CreateInstance(
    const VkInstanceCreateInfo *info, const VkAllocationCallbacks *memory, VkInstance *instance) {
    VkLayerInstanceCreateInfo *link = link_of_instance(info->pNext);
    Owner *owner = calloc(1, sizeof *owner);
    if (!link || !owner) {
        free(owner);
        return VK_ERROR_INITIALIZATION_FAILED;
    }
    PFN_vkGetInstanceProcAddr next = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext; /* for the layer below */
    PFN_vkCreateInstance create = (PFN_vkCreateInstance)next(VK_NULL_HANDLE, "vkCreateInstance");
    VkResult result = create ? create(info, memory, instance) : VK_ERROR_INITIALIZATION_FAILED;
    if (result != VK_SUCCESS) {
        free(owner);
        return result;
    }
    owner->instance = *instance;
    owner->next_of_instance = next;
    owner->DestroyInstance = (PFN_vkDestroyInstance)next(*instance, "vkDestroyInstance");
    add_owner(owner, *instance);
    return result;
}

static VKAPI_ATTR void VKAPI_CALL watch_DestroyInstance(
    VkInstance instance, const VkAllocationCallbacks *memory) {
    if (!instance) return;
    Owner *owner = owner_of(instance);
    owner->DestroyInstance(instance, memory);
    drop_owner(owner);
}

static VKAPI_ATTR VkResult VKAPI_CALL watch_CreateDevice(
    VkPhysicalDevice physical, const VkDeviceCreateInfo *info, const VkAllocationCallbacks *memory,
    VkDevice *device) {
    VkLayerDeviceCreateInfo *link = link_of_device(info->pNext);
    Owner *owner = calloc(1, sizeof *owner);
    if (!link || !owner) {
        free(owner);
        return VK_ERROR_INITIALIZATION_FAILED;
    }
    PFN_vkGetInstanceProcAddr next_of_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    PFN_vkGetDeviceProcAddr next = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    PFN_vkCreateDevice create =
        (PFN_vkCreateDevice)next_of_instance(owner_of(physical)->instance, "vkCreateDevice");
    VkResult result =
        create ? create(physical, info, memory, device) : VK_ERROR_INITIALIZATION_FAILED;
    if (result != VK_SUCCESS) {
        free(owner);
        return result;
    }
    owner->next_of_device = next;
#define X(name) owner->name = (PFN_vk##name)next(*device, "vk" #name);
    DEVICE_CALLS(X)
#undef X
    add_owner(owner, *device);
    pthread_mutex_lock(&lock);
    devices_made++;
    pthread_mutex_unlock(&lock);
    return result;
}

static VKAPI_ATTR void VKAPI_CALL watch_DestroyDevice(
    VkDevice device, const VkAllocationCallbacks *memory) {
    if (!device) return;
    Owner *owner = owner_of(device);
    void *table = table_of(device);
    owner->DestroyDevice(device, memory);
    pthread_mutex_lock(&lock);
    forget_device(modules, table);
    forget_device(pipelines, table);
    forget_device(commands, table);
    pthread_mutex_unlock(&lock);
    drop_owner(owner);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL of_device(VkDevice device, const char *name);
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL of_instance(VkInstance instance, const char *name);

#define IS(call, function)                                                                        \
    if (!strcmp(name, "vk" #call)) return (PFN_vkVoidFunction)function

static PFN_vkVoidFunction watched(const char *name) {
    IS(GetDeviceProcAddr, of_device);
    IS(BeginCommandBuffer, watch_BeginCommandBuffer);
    IS(CmdBindPipeline, watch_CmdBindPipeline);
    IS(CmdDispatch, watch_CmdDispatch);
    IS(CmdDispatchBase, watch_CmdDispatchBase);
    IS(CmdDispatchBaseKHR, watch_CmdDispatchBaseKHR);
    IS(CmdDispatchIndirect, watch_CmdDispatchIndirect);
    IS(CmdExecuteCommands, watch_CmdExecuteCommands);
    IS(CreateComputePipelines, watch_CreateComputePipelines);
    IS(CreateShaderModule, watch_CreateShaderModule);
    IS(DestroyDevice, watch_DestroyDevice);
    IS(DestroyPipeline, watch_DestroyPipeline);
    IS(DestroyShaderModule, watch_DestroyShaderModule);
    IS(FreeCommandBuffers, watch_FreeCommandBuffers);
    IS(QueueSubmit, watch_QueueSubmit);
    IS(QueueSubmit2, watch_QueueSubmit2);
    IS(QueueSubmit2KHR, watch_QueueSubmit2KHR);
    IS(ResetCommandBuffer, watch_ResetCommandBuffer);
    return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL of_device(VkDevice device, const char *name) {
    PFN_vkVoidFunction next = owner_of(device)->next_of_device(device, name);
    PFN_vkVoidFunction mine = next ? watched(name) : NULL; /* what is not there stays away */
    return mine ? mine : next;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL of_instance(VkInstance instance, const char *name) {
    IS(GetInstanceProcAddr, of_instance);
    IS(CreateInstance, watch_CreateInstance);
    if (!instance) return NULL;
    IS(DestroyInstance, watch_DestroyInstance);
    IS(CreateDevice, watch_CreateDevice);
    PFN_vkVoidFunction next = owner_of(instance)->next_of_instance(instance, name);
    PFN_vkVoidFunction mine = next ? watched(name) : NULL;
    return mine ? mine : next;
}

EXPORT VKAPI_ATTR VkResult VKAPI_CALL
vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *terms) {
    if (terms->loaderLayerInterfaceVersion < 2) return VK_ERROR_INITIALIZATION_FAILED;
    terms->loaderLayerInterfaceVersion = 2;
    terms->pfnGetInstanceProcAddr = of_instance;
    terms->pfnGetDeviceProcAddr = of_device;
    terms->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}

/* --- what the process that is watched asks ---------------------------------------------------- */

/* How many devices were made with this layer in between. */
EXPORT uint64_t nn_meter_devices(void) {
    pthread_mutex_lock(&lock);
    uint64_t count = devices_made;
    pthread_mutex_unlock(&lock);
    return count;
}

/* From here on, write down what is submitted. */
EXPORT void nn_meter_start(void) {
    pthread_mutex_lock(&lock);
    seen.count = 0;
    watching = 1;
    pthread_mutex_unlock(&lock);
}

/* Stop; fill in the hashes of the shaders, as many as there is room for; return how many there are,
 * or -1 if memory ran out and some are missing. */
EXPORT int64_t nn_meter_stop(uint64_t *hashes, uint64_t room) {
    pthread_mutex_lock(&lock);
    watching = 0;
    for (size_t i = 0; i < seen.count && i < room; i++) hashes[i] = seen.items[i];
    int64_t count = lost ? -1 : (int64_t)seen.count;
    pthread_mutex_unlock(&lock);
    return count;
}
