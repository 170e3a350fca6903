/* kv_store_v1: where an inference server keeps saved sessions.
 *
 * A backend is a shared library, libkv_store_SCHEME.so for URIs that begin with SCHEME://, with one exported
 * function, kv_store_get_vtable. A session is a manifest (a name, and bytes that only the consumer reads) and
 * chunks (a hash of their content, and bytes), which several manifests may share.
 *
 * Answers: 0 or more is success, less than 0 the negative of an errno; -ENOENT for what is not there.
 * Memory: what a call gives back in *out is malloc's, and the caller frees it with free(). What a call is given
 * is the caller's again when it returns.
 * Order: put_chunk may keep a chunk back until the next put_manifest; get_chunk of the same handle finds it all
 * the same. Once a manifest can be read, so can all chunks that were put before it.
 */
#ifndef KV_STORE_V1_H
#define KV_STORE_V1_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kv_store_v1 kv_store_v1;

typedef struct kv_store_v1_vtable {
    /* 1, or 2 where prefetch_chunks is there. */
    uint32_t version;
    /* NULL when it cannot be opened. */
    kv_store_v1 *(*open)(const char *uri);
    void (*close)(kv_store_v1 *store);
    /* A chunk that is there already stays as it is, and that is success. */
    int (*put_chunk)(kv_store_v1 *store, const uint8_t *hash, size_t hash_length, const uint8_t *data,
                     size_t length);
    int (*get_chunk)(kv_store_v1 *store, const uint8_t *hash, size_t hash_length, uint8_t **out,
                     size_t *out_length);
    /* Replaces one of the same name, at once and as a whole. It may have no bytes. */
    int (*put_manifest)(kv_store_v1 *store, const char *name, const uint8_t *data, size_t length);
    int (*get_manifest)(kv_store_v1 *store, const char *name, uint8_t **out, size_t *out_length);
    int (*delete_manifest)(kv_store_v1 *store, const char *name);
    /* Version 2: these chunks, `count` hashes of `hash_length` bytes one behind the other, will be asked for
     * in this order. One that is not there is no error. */
    int (*prefetch_chunks)(kv_store_v1 *store, const uint8_t *hashes, size_t hash_length, size_t count);
} kv_store_v1_vtable;

const kv_store_v1_vtable *kv_store_get_vtable(void);

#ifdef __cplusplus
}
#endif
#endif
