/*
 * As much of NIXL's C interface as upstream's layouts need to say that they have an agent: its making and its
 * end. No memory is registered and nothing is moved.
 */
#include <stdlib.h>

int nixl_capi_create_agent(const char *name, void **agent) {
    (void)name;
    *agent = malloc(1);
    return *agent ? 0 : -1;
}

int nixl_capi_destroy_agent(void *agent) {
    free(agent);
    return 0;
}
