/*
 * memkv.h: libmemkv, the client of memkv, the shared store of KV-cache blocks.
 *
 * Ownership
 *   - What memkv_open and memkv_queue_open give is the caller's until memkv_close and
 *     memkv_queue_close, which everyone calls once and after all other calls with it. A queue outlives
 *     its client.
 *   - Memory of the caller (keys, values, buffers, arrays, results) is used during the call only, and
 *     must be there and, but for results and buffers, unchanged for as long. A queue takes keys and
 *     options over at once; values and buffers are its own from the call on until memkv_queue_drain
 *     has given their completion, or memkv_queue_close has returned.
 *   - What the library gives (memkv_value, memkv_completions) is the caller's until he gives it back by
 *     the function for it. Never by free().
 *   - Results are written to arrays and structs of the caller that need not be initialised.
 *
 * Threads
 *   - Any number of threads may use a client or a queue at one time. A call does its work on the thread
 *     that makes it, and ends by its deadline, whatever servers do. Only a queue has threads, from its
 *     first batch on; they run no code of the caller.
 *   - No signal is used, and none is raised by a server that is gone.
 *
 * fork(2)
 *   - A child may use every client and queue that it has inherited: it gets connections, threads and
 *     file descriptors of its own at its first call. A batch that was under way stays the parent's, and
 *     is never completed in the child. Of what the child inherits it closes what it wants to.
 *   - Between vfork(2) and execve(2): no call.
 *
 * Errors
 *   - Functions return a status: 0 or more for an answer, less than 0 for an error. After an error
 *     memkv_error() has a line about it, for the thread whose call it was.
 *   - NULL where there must be something, lengths that no memory has, buffers that overlap: all are
 *     MEMKV_E_INVALID. NULL is good wherever the length or count beside it is 0.
 *   - MEMKV_E_TIMEOUT and MEMKV_E_BROKEN leave open whether a put or delete was carried out. After all
 *     other errors it was not. For a reader of blocks an error of a server is as good as a miss.
 *   - Nothing is thrown across this interface.
 *
 * This file is made by cbindgen; the text is that of cbindgen.toml and of the Rust code.
 */


#ifndef MEMKV_H
#define MEMKV_H

#include <stddef.h>
#include <stdint.h>

/**
 * Done. For a get or an existence: the block is there.
 */
#define MEMKV_OK 0

/**
 * There is no such block. Not an error.
 */
#define MEMKV_MISS 1

/**
 * A put found a value of the same length under its key, which stays. Not an error.
 */
#define MEMKV_PRESENT 2

/**
 * An argument makes no sense; nothing was done.
 */
#define MEMKV_E_INVALID -1

/**
 * The configuration makes no sense.
 */
#define MEMKV_E_CONFIG -2

/**
 * The value is longer than the server takes.
 */
#define MEMKV_E_TOO_LARGE -3

/**
 * The server, or the queue, was too busy; nothing was done.
 */
#define MEMKV_E_BUSY -4

/**
 * The server has no room that it could make.
 */
#define MEMKV_E_FULL -5

/**
 * A value of another length is stored under this key.
 */
#define MEMKV_E_CONFLICT -6

/**
 * The key has another generation than the one named.
 */
#define MEMKV_E_GENERATION -7

/**
 * The bytes of a put were damaged on the way; nothing was stored.
 */
#define MEMKV_E_CORRUPT -8

/**
 * A drive of the server failed under this request.
 */
#define MEMKV_E_IO -9

/**
 * No answer by the deadline: whether a put or delete was carried out is unknown.
 */
#define MEMKV_E_TIMEOUT -10

/**
 * The server cannot be reached; nothing was done.
 */
#define MEMKV_E_UNAVAILABLE -11

/**
 * The connection broke: whether a put or delete was carried out is unknown.
 */
#define MEMKV_E_BROKEN -12

/**
 * The key may not do this.
 */
#define MEMKV_E_UNAUTHORIZED -13

/**
 * The server refused the request for another reason.
 */
#define MEMKV_E_REFUSED -14

/**
 * The queue is closed.
 */
#define MEMKV_E_CLOSED -15

/**
 * The operating system gave no thread or file descriptor.
 */
#define MEMKV_E_SYSTEM -16

/**
 * A fault of this library, of which it says more on standard error.
 */
#define MEMKV_E_INTERNAL -17

/**
 * Counts the changes of this interface that old programs do not survive.
 */
#define MEMKV_ABI_VERSION 0

/**
 * Only if nothing is stored under the key.
 */
#define MEMKV_PUT_ABSENT 0

/**
 * Whatever is stored under the key.
 */
#define MEMKV_PUT_REPLACE 1

/**
 * Only if the key has exactly the generation named.
 */
#define MEMKV_PUT_GENERATION 2

/**
 * In memkv_config.flags: neither MEMKV_CONFIG nor the other MEMKV_* variables are looked at.
 */
#define MEMKV_NO_ENVIRONMENT 1

/**
 * The operations that a completion can be of.
 */
#define MEMKV_OP_PUT 1

/**
 * See MEMKV_OP_PUT.
 */
#define MEMKV_OP_GET 2

/**
 * See MEMKV_OP_PUT.
 */
#define MEMKV_OP_EXISTS 3

/**
 * See MEMKV_OP_PUT.
 */
#define MEMKV_OP_MATCH_PREFIX 4

/**
 * See MEMKV_OP_PUT.
 */
#define MEMKV_OP_DELETE 5

/**
 * A client of one or more servers.
 */
typedef struct memkv_client memkv_client;

/**
 * A queue of batches of one client.
 */
typedef struct memkv_queue memkv_queue;

/**
 * How a client finds its servers. What is NULL or 0 is as the environment says, or else as the documentation
 * of the client says.
 */
typedef struct memkv_config {
  /**
   * sizeof(memkv_config), which tells the fields that the program knows.
   */
  size_t size;
  /**
   * host[:port][*weight], separated by commas.
   */
  const char *servers;
  /**
   * The namespace of the keys, 1 to 255 bytes.
   */
  const char *key_namespace;
  /**
   * 64 hexadecimal digits.
   */
  const char *auth_key;
  /**
   * Which of the server's keys that is.
   */
  uint32_t key_id;
  /**
   * Connections per server.
   */
  uint32_t num_connections;
  /**
   * Milliseconds until a connection must stand.
   */
  uint64_t connect_timeout_ms;
  /**
   * Milliseconds that a call may take in all.
   */
  uint64_t request_timeout_ms;
  /**
   * 0 or MEMKV_NO_ENVIRONMENT.
   */
  uint32_t flags;
} memkv_config;

/**
 * Bytes to read: a key of 1 to 512 bytes, or a value. `data` may be NULL where `length` is 0.
 */
typedef struct memkv_bytes {
  /**
   * The first of them.
   */
  const void *data;
  /**
   * How many.
   */
  size_t length;
} memkv_bytes;

/**
 * How to store values. NULL stands for one that is all 0, but for its size.
 */
typedef struct memkv_put_options {
  /**
   * sizeof(memkv_put_options), which tells the fields that the program knows.
   */
  size_t size;
  /**
   * MEMKV_PUT_ABSENT, MEMKV_PUT_REPLACE or MEMKV_PUT_GENERATION.
   */
  uint32_t mode;
  /**
   * Seconds to live; 0 for ever.
   */
  uint32_t ttl_seconds;
  /**
   * Seconds for which it is evicted after all others; 0 for none.
   */
  uint32_t pin_seconds;
  /**
   * Not 0: answer only when the value survives a power cut, whatever the server's default.
   */
  uint32_t durable;
  /**
   * With MEMKV_PUT_GENERATION.
   */
  uint64_t generation;
  /**
   * Milliseconds that the call may take; 0 as configured.
   */
  uint64_t timeout_ms;
} memkv_put_options;

/**
 * What is known of a block.
 */
typedef struct memkv_info {
  /**
   * Bytes of the whole value, which may be more than the buffer took; 0 for a miss.
   */
  uint64_t length;
  /**
   * Its generation; 0 for a miss.
   */
  uint64_t generation;
  /**
   * Why there is no block: 0 never stored, 1 evicted, 2 deleted, 3 expired, 4 drive lost, 5 corrupt.
   */
  uint32_t reason;
} memkv_info;

/**
 * A value that memkv_get brought, in memory of the library until memkv_value_free.
 */
typedef struct memkv_value {
  /**
   * Its first byte; NULL when there is none.
   */
  void *data;
  /**
   * How many bytes.
   */
  size_t length;
  /**
   * Its generation.
   */
  uint64_t generation;
} memkv_value;

/**
 * Memory to write to. `data` may be NULL where `length` is 0.
 */
typedef struct memkv_buffer {
  /**
   * Its first byte.
   */
  void *data;
  /**
   * How many bytes.
   */
  size_t length;
} memkv_buffer;

/**
 * A batch of a queue that is done. What it points to belongs to the memkv_completions that it came in.
 */
typedef struct memkv_completion {
  /**
   * What submitting it gave.
   */
  uint64_t ticket;
  /**
   * MEMKV_OP_PUT and so on.
   */
  uint32_t operation;
  /**
   * MEMKV_OK, or that of the first key that failed. A miss is no failure.
   */
  int32_t status;
  /**
   * Keys of the batch; 0 of a MEMKV_OP_MATCH_PREFIX, and of a MEMKV_OP_EXISTS that failed.
   */
  size_t count;
  /**
   * One for each key, `count` of them.
   */
  const int32_t *statuses;
  /**
   * Of a get: what is known of each block. Else NULL.
   */
  const struct memkv_info *infos;
  /**
   * Of a MEMKV_OP_MATCH_PREFIX: how many keys at the front are stored.
   */
  size_t matched;
  /**
   * What the first failure was; empty when there was none.
   */
  const char *error;
  /**
   * Nanoseconds from its submission until a worker took it.
   */
  uint64_t waited_ns;
  /**
   * Nanoseconds from then until it was done.
   */
  uint64_t took_ns;
} memkv_completion;

/**
 * Completions, until memkv_completions_free.
 */
typedef struct memkv_completions {
  /**
   * `count` of them; NULL when there are none.
   */
  const struct memkv_completion *items;
  /**
   * How many.
   */
  size_t count;
  /**
   * Of the library.
   */
  void *owner;
} memkv_completions;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library, "major.minor.patch". Never NULL, never freed.
 */
const char *memkv_version(void);

/**
 * The MEMKV_ABI_VERSION that the library was built with; one that differs from the header's cannot be used.
 */
uint32_t memkv_abi_version(void);

/**
 * What went wrong in the last call of this thread that returned an error, in one line. It is the thread's, and
 * stays as it is until another of its calls fails. Empty before the first; never NULL, never freed.
 */
const char *memkv_error(void);

/**
 * Makes a client. Nobody is talked to yet. `config` may be NULL: then MEMKV_CONFIG and the other MEMKV_*
 * variables say everything; what is set in it goes before them.
 */
int32_t memkv_open(const struct memkv_config *config,
                   struct memkv_client **client);

/**
 * Closes a client; NULL is no client. Its queues live on.
 */
void memkv_close(struct memkv_client *client);

/**
 * Stores one value. MEMKV_OK when it is stored, MEMKV_PRESENT when a value of this length was there before and
 * stays. `info` may be NULL.
 */
int32_t memkv_put(const struct memkv_client *client,
                  struct memkv_bytes key,
                  struct memkv_bytes value,
                  const struct memkv_put_options *options,
                  struct memkv_info *info);

/**
 * Reads one value into memory of the library, which memkv_value_free gives back. MEMKV_OK or MEMKV_MISS.
 */
int32_t memkv_get(const struct memkv_client *client,
                  struct memkv_bytes key,
                  struct memkv_value *value);

/**
 * Frees what memkv_get brought, and empties the struct; an empty one, and NULL, are left as they are.
 */
void memkv_value_free(struct memkv_value *value);

/**
 * Reads from `offset` of a value on into `buffer`, until one of them ends. MEMKV_OK or MEMKV_MISS; `info`,
 * which may be NULL, tells the length of the whole value. Unless MEMKV_OK is returned, what is in the buffer
 * means nothing.
 */
int32_t memkv_get_into(const struct memkv_client *client,
                       struct memkv_bytes key,
                       uint64_t offset,
                       struct memkv_buffer buffer,
                       struct memkv_info *info);

/**
 * Whether a block is stored: MEMKV_OK or MEMKV_MISS. It may be gone the next moment.
 */
int32_t memkv_exists(const struct memkv_client *client, struct memkv_bytes key);

/**
 * Removes one block: MEMKV_OK, or MEMKV_MISS when there was none. `generation` 0 stands for any.
 */
int32_t memkv_delete(const struct memkv_client *client,
                     struct memkv_bytes key,
                     uint64_t generation);

/**
 * How many keys at the front of `keys` are stored, in one request per server.
 */
int32_t memkv_match_prefix(const struct memkv_client *client,
                           const struct memkv_bytes *keys,
                           size_t count,
                           size_t *matched);

/**
 * Stores `count` values, in the order of their chain. `statuses` gets what memkv_put would return for each.
 * Returns MEMKV_OK, or the status of the first that failed; the others are carried out all the same.
 */
int32_t memkv_put_batch(const struct memkv_client *client,
                        const struct memkv_bytes *keys,
                        const struct memkv_bytes *values,
                        size_t count,
                        const struct memkv_put_options *options,
                        int32_t *statuses);

/**
 * Reads `count` values, each into its buffer. `statuses` gets what memkv_get_into would return for each, and
 * `infos`, which may be NULL, what is known of them. The buffers must not overlap. Returns as memkv_put_batch.
 */
int32_t memkv_get_batch(const struct memkv_client *client,
                        const struct memkv_bytes *keys,
                        const struct memkv_buffer *buffers,
                        size_t count,
                        int32_t *statuses,
                        struct memkv_info *infos);

/**
 * Which of `count` keys are stored: `statuses` gets MEMKV_OK or MEMKV_MISS for each. Keys of a server that
 * cannot be reached count as not stored.
 */
int32_t memkv_exists_batch(const struct memkv_client *client,
                           const struct memkv_bytes *keys,
                           size_t count,
                           int32_t *statuses);

/**
 * Removes `count` blocks: `statuses` gets what memkv_delete would return for each. Returns as memkv_put_batch.
 */
int32_t memkv_delete_batch(const struct memkv_client *client,
                           const struct memkv_bytes *keys,
                           size_t count,
                           int32_t *statuses);

/**
 * Makes a queue whose puts and gets are carried by up to `workers` threads, of which none exists before the
 * first batch. It works on when its client is closed.
 */
int32_t memkv_queue_open(const struct memkv_client *client,
                         size_t workers,
                         struct memkv_queue **queue);

/**
 * Waits until no batch is under way, at most until their deadlines, and frees the queue with the completions
 * that were not drained; NULL is no queue. All memory is the caller's again.
 */
void memkv_queue_close(struct memkv_queue *queue);

/**
 * A file descriptor that is readable while there are completions: for poll(2) and its like, not to be read
 * from or closed. Less than 0: an error. In the child of a fork there is another.
 */
int32_t memkv_queue_fd(const struct memkv_queue *queue);

/**
 * Stores values; see memkv_put_batch. The values are the queue's until the completion is drained. Never waits.
 * `timeout_ms` counts from now on, 0 stands for the configured time; that of the options goes before it.
 */
int32_t memkv_queue_put(const struct memkv_queue *queue,
                        const struct memkv_bytes *keys,
                        const struct memkv_bytes *values,
                        size_t count,
                        const struct memkv_put_options *options,
                        uint64_t timeout_ms,
                        uint64_t *ticket);

/**
 * Reads values; see memkv_get_batch. The buffers are the queue's until the completion is drained. Never waits.
 */
int32_t memkv_queue_get(const struct memkv_queue *queue,
                        const struct memkv_bytes *keys,
                        const struct memkv_buffer *buffers,
                        size_t count,
                        uint64_t timeout_ms,
                        uint64_t *ticket);

/**
 * Which keys are stored; see memkv_exists_batch. Never waits.
 */
int32_t memkv_queue_exists(const struct memkv_queue *queue,
                           const struct memkv_bytes *keys,
                           size_t count,
                           uint64_t timeout_ms,
                           uint64_t *ticket);

/**
 * How many keys at the front are stored; see memkv_match_prefix. Never waits.
 */
int32_t memkv_queue_match_prefix(const struct memkv_queue *queue,
                                 const struct memkv_bytes *keys,
                                 size_t count,
                                 uint64_t timeout_ms,
                                 uint64_t *ticket);

/**
 * Removes blocks; see memkv_delete_batch. Never waits.
 */
int32_t memkv_queue_delete(const struct memkv_queue *queue,
                           const struct memkv_bytes *keys,
                           size_t count,
                           uint64_t timeout_ms,
                           uint64_t *ticket);

/**
 * Waits until there is a completion, or nothing under way, or `timeout_ms` are over. 1 when there is a
 * completion, else 0; less than 0: an error.
 */
int32_t memkv_queue_wait(const struct memkv_queue *queue,
                         uint64_t timeout_ms);

/**
 * Gives the completions so far, for memkv_completions_free. Never waits. The memory of their batches is the
 * caller's again.
 */
int32_t memkv_queue_drain(const struct memkv_queue *queue,
                          struct memkv_completions *completions);

/**
 * Frees completions with all that they point to, and empties the struct; an empty one, and NULL, are left as
 * they are.
 */
void memkv_completions_free(struct memkv_completions *completions);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MEMKV_H */
