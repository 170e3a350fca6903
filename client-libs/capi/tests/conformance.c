/* What the header promises, called from C. Arguments: the address of a server, and one where none is. */
#define _POSIX_C_SOURCE 200809L
#include <memkv.h>

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what)                                                                    \
    do {                                                                               \
        if (!(what)) {                                                                 \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #what,            \
                    memkv_error());                                                    \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

enum { BLOCK = 300000, COUNT = 16, THREADS = 4 };

static const char *address, *nobody;
static memkv_client *client;

static memkv_bytes text(const char *text)
{
    memkv_bytes bytes = {text, strlen(text)};
    return bytes;
}

static memkv_buffer room(void *data, size_t length)
{
    memkv_buffer buffer = {data, length};
    return buffer;
}

/* Bytes in which every place tells where it is. */
static void fill(unsigned char *data, size_t length, unsigned salt)
{
    for (size_t at = 0; at < length; at++)
        data[at] = (unsigned char)((at * 2654435761u + salt) >> 13);
}

static memkv_client *open_at(const char *servers, const char *key_namespace)
{
    memkv_client *opened = NULL;
    memkv_config config = {.size = sizeof config, .servers = servers};
    config.key_namespace = key_namespace;
    config.connect_timeout_ms = 60000;
    config.request_timeout_ms = 60000;
    config.flags = MEMKV_NO_ENVIRONMENT;
    CHECK(memkv_open(&config, &opened) == MEMKV_OK);
    CHECK(opened != NULL);
    return opened;
}

static void versions(void)
{
    CHECK(memkv_abi_version() == MEMKV_ABI_VERSION);
    CHECK(strchr(memkv_version(), '.') != NULL);
    CHECK(*memkv_error() == 0);
}

static void configuration(void)
{
    memkv_client *opened = (memkv_client *)&opened;
    memkv_config config = {.size = sizeof config, .servers = "no server at all"};
    CHECK(memkv_open(&config, &opened) == MEMKV_E_CONFIG);
    CHECK(opened == NULL);
    CHECK(strstr(memkv_error(), "no server at all") != NULL);
    config.servers = NULL;
    config.auth_key = "short";
    CHECK(memkv_open(&config, &opened) == MEMKV_E_CONFIG);
    CHECK(strstr(memkv_error(), "auth_key") != NULL);
    config.auth_key = NULL;
    config.size = 0;
    CHECK(memkv_open(&config, &opened) == MEMKV_E_INVALID);
    config.size = sizeof config + 8;
    CHECK(memkv_open(&config, &opened) == MEMKV_E_INVALID);
    config.size = sizeof config;
    config.flags = 1u << 31;
    CHECK(memkv_open(&config, &opened) == MEMKV_E_INVALID);
    CHECK(memkv_open(NULL, NULL) == MEMKV_E_INVALID);
    memkv_close(NULL);

    /* The environment says where, and the struct goes before it. */
    setenv("MEMKV_SERVERS", address, 1);
    setenv("MEMKV_CONNECT_TIMEOUT_MS", "60000", 1);
    setenv("MEMKV_NAMESPACE", "of the environment", 1);
    CHECK(memkv_open(NULL, &opened) == MEMKV_OK);
    CHECK(memkv_put(opened, text("k"), text("environment"), NULL, NULL) == MEMKV_OK);
    memkv_config name = {.size = sizeof name, .key_namespace = "of the struct"};
    memkv_client *other;
    CHECK(memkv_open(&name, &other) == MEMKV_OK);
    CHECK(memkv_exists(opened, text("k")) == MEMKV_OK);
    CHECK(memkv_exists(other, text("k")) == MEMKV_MISS);
    memkv_close(other);
    memkv_close(opened);
    setenv("MEMKV_NUM_CONNECTIONS", "many", 1);
    CHECK(memkv_open(NULL, &opened) == MEMKV_E_CONFIG);
    CHECK(strstr(memkv_error(), "MEMKV_NUM_CONNECTIONS") != NULL);
    config.flags = MEMKV_NO_ENVIRONMENT;
    CHECK(memkv_open(&config, &opened) == MEMKV_OK);
    memkv_close(opened);
    unsetenv("MEMKV_NUM_CONNECTIONS");
}

static void one_value(void)
{
    unsigned char *put = malloc(BLOCK), *got = malloc(BLOCK + 1);
    fill(put, BLOCK, 1);
    memkv_bytes key = text("one"), value = {put, BLOCK};
    memkv_info info;
    memkv_value whole;
    CHECK(memkv_exists(client, key) == MEMKV_MISS);
    CHECK(memkv_get(client, key, &whole) == MEMKV_MISS);
    CHECK(whole.data == NULL && whole.length == 0);
    CHECK(memkv_get_into(client, key, 0, room(got, BLOCK), &info) == MEMKV_MISS);
    CHECK(info.length == 0 && info.reason == 0);
    CHECK(memkv_put(client, key, value, NULL, &info) == MEMKV_OK);
    CHECK(info.length == BLOCK && info.generation > 0);
    uint64_t generation = info.generation;
    CHECK(memkv_put(client, key, value, NULL, &info) == MEMKV_PRESENT);
    CHECK(info.length == BLOCK && info.generation == generation);
    CHECK(memkv_put(client, key, text("short"), NULL, NULL) == MEMKV_E_CONFLICT);

    CHECK(memkv_get(client, key, &whole) == MEMKV_OK);
    CHECK(whole.length == BLOCK && whole.generation == generation);
    CHECK(memcmp(whole.data, put, BLOCK) == 0);
    memkv_value_free(&whole);
    CHECK(whole.data == NULL);
    memkv_value_free(&whole);
    memkv_value_free(NULL);

    got[BLOCK] = 77;
    CHECK(memkv_get_into(client, key, 0, room(got, BLOCK), &info) == MEMKV_OK);
    CHECK(info.length == BLOCK && memcmp(got, put, BLOCK) == 0 && got[BLOCK] == 77);
    CHECK(memkv_get_into(client, key, 1000, room(got, 10), NULL) == MEMKV_OK);
    CHECK(memcmp(got, put + 1000, 10) == 0 && got[10] == put[10]);

    /* The key may lie where the value goes. */
    memcpy(got, "one", 3);
    memkv_bytes within = {got, 3};
    CHECK(memkv_get_into(client, within, 0, room(got, BLOCK), NULL) == MEMKV_OK);
    CHECK(memcmp(got, put, BLOCK) == 0);

    memkv_put_options options = {.size = sizeof options, .mode = MEMKV_PUT_GENERATION};
    options.generation = generation + 1000;
    CHECK(memkv_put(client, key, text("new"), &options, NULL) == MEMKV_E_GENERATION);
    options.generation = generation;
    CHECK(memkv_put(client, key, text("new"), &options, &info) == MEMKV_OK);
    options.mode = MEMKV_PUT_REPLACE;
    CHECK(memkv_put(client, key, text("newer"), &options, &info) == MEMKV_OK);
    CHECK(memkv_get(client, key, &whole) == MEMKV_OK);
    CHECK(whole.length == 5 && memcmp(whole.data, "newer", 5) == 0);
    memkv_value_free(&whole);
    CHECK(memkv_delete(client, key, generation) == MEMKV_E_GENERATION);
    CHECK(memkv_delete(client, key, 0) == MEMKV_OK);
    CHECK(memkv_delete(client, key, 0) == MEMKV_MISS);
    CHECK(memkv_get_into(client, key, 0, room(got, 1), &info) == MEMKV_MISS);
    CHECK(info.reason == 2);
    free(put);
    free(got);
}

static void bad_arguments(void)
{
    char small[8];
    int32_t statuses[2];
    size_t matched;
    memkv_bytes null = {NULL, 5}, empty = {NULL, 0}, key = text("k"), endless = {small, SIZE_MAX};
    memkv_value value;
    CHECK(memkv_put(NULL, key, key, NULL, NULL) == MEMKV_E_INVALID);
    CHECK(memkv_put(client, null, key, NULL, NULL) == MEMKV_E_INVALID);
    CHECK(memkv_put(client, key, null, NULL, NULL) == MEMKV_E_INVALID);
    CHECK(strstr(memkv_error(), "NULL") != NULL);
    CHECK(memkv_put(client, key, empty, NULL, NULL) == MEMKV_E_INVALID);
    CHECK(memkv_put(client, empty, key, NULL, NULL) == MEMKV_E_INVALID);
    CHECK(memkv_put(client, key, endless, NULL, NULL) == MEMKV_E_INVALID);
    CHECK(memkv_get(client, key, NULL) == MEMKV_E_INVALID);
    memset(&value, 0xee, sizeof value);
    CHECK(memkv_get(NULL, key, &value) == MEMKV_E_INVALID && value.data == NULL);
    memkv_value_free(&value);
    CHECK(memkv_get_into(client, key, 0, room(NULL, 1), NULL) == MEMKV_E_INVALID);
    CHECK(memkv_get_into(client, key, 0, room(NULL, 0), NULL) == MEMKV_MISS);
    CHECK(memkv_exists(client, empty) == MEMKV_E_INVALID);
    CHECK(memkv_delete(client, null, 0) == MEMKV_E_INVALID);
    memkv_put_options options = {.size = sizeof options, .mode = 9};
    CHECK(memkv_put(client, key, key, &options, NULL) == MEMKV_E_INVALID);

    CHECK(memkv_put_batch(client, NULL, NULL, 0, NULL, NULL) == MEMKV_OK);
    CHECK(memkv_get_batch(client, NULL, NULL, 0, NULL, NULL) == MEMKV_OK);
    CHECK(memkv_exists_batch(client, NULL, 0, NULL) == MEMKV_OK);
    CHECK(memkv_delete_batch(client, NULL, 0, NULL) == MEMKV_OK);
    CHECK(memkv_match_prefix(client, NULL, 0, &matched) == MEMKV_OK && matched == 0);
    CHECK(memkv_put_batch(client, NULL, &key, 1, NULL, statuses) == MEMKV_E_INVALID);
    CHECK(memkv_put_batch(client, &key, NULL, 1, NULL, statuses) == MEMKV_E_INVALID);
    CHECK(memkv_put_batch(client, &key, &key, 1, NULL, NULL) == MEMKV_E_INVALID);
    CHECK(memkv_exists_batch(client, &key, SIZE_MAX, statuses) == MEMKV_E_INVALID);
    CHECK(memkv_match_prefix(client, &key, 1, NULL) == MEMKV_E_INVALID);
    memkv_bytes keys[2] = {text("a"), text("b")};
    memkv_buffer overlap[2] = {room(small, 5), room(small + 4, 4)};
    CHECK(memkv_get_batch(client, keys, overlap, 2, statuses, NULL) == MEMKV_E_INVALID);
    CHECK(strstr(memkv_error(), "overlap") != NULL);
}

static void names(char name[COUNT][16], memkv_bytes keys[COUNT], const char *prefix)
{
    for (int at = 0; at < COUNT; at++) {
        snprintf(name[at], sizeof name[at], "%s-%d", prefix, at);
        keys[at] = text(name[at]);
    }
}

static void batches(void)
{
    char name[COUNT][16];
    memkv_bytes keys[COUNT], values[COUNT];
    memkv_buffer buffers[COUNT];
    memkv_info infos[COUNT];
    int32_t statuses[COUNT];
    size_t matched;
    unsigned char *put = malloc((size_t)COUNT * BLOCK), *got = malloc((size_t)COUNT * BLOCK);
    names(name, keys, "batch");
    for (int at = 0; at < COUNT; at++) {
        fill(put + at * BLOCK, BLOCK, (unsigned)at);
        values[at].data = put + at * BLOCK;
        values[at].length = BLOCK;
        buffers[at] = room(got + at * BLOCK, BLOCK);
    }
    CHECK(memkv_match_prefix(client, keys, COUNT, &matched) == MEMKV_OK && matched == 0);
    CHECK(memkv_put(client, keys[0], text("other"), NULL, NULL) == MEMKV_OK);
    memkv_bytes bad = keys[3];
    keys[3].length = 0;
    /* Two fail, each for itself, and the others are stored. */
    CHECK(memkv_put_batch(client, keys, values, COUNT, NULL, statuses) == MEMKV_E_CONFLICT);
    for (int at = 0; at < COUNT; at++)
        CHECK(statuses[at] == (at == 0 ? MEMKV_E_CONFLICT : at == 3 ? MEMKV_E_INVALID : MEMKV_OK));
    keys[3] = bad;
    memkv_put_options replace = {.size = sizeof replace, .mode = MEMKV_PUT_REPLACE};
    CHECK(memkv_put_batch(client, keys, values, 1, &replace, statuses) == MEMKV_OK);
    CHECK(memkv_match_prefix(client, keys, COUNT, &matched) == MEMKV_OK && matched == 3);
    CHECK(memkv_exists_batch(client, keys, COUNT, statuses) == MEMKV_OK);
    for (int at = 0; at < COUNT; at++)
        CHECK(statuses[at] == (at == 3 ? MEMKV_MISS : MEMKV_OK));
    CHECK(memkv_get_batch(client, keys, buffers, COUNT, statuses, infos) == MEMKV_OK);
    for (int at = 0; at < COUNT; at++) {
        CHECK(statuses[at] == (at == 3 ? MEMKV_MISS : MEMKV_OK));
        CHECK(infos[at].length == (at == 3 ? 0 : BLOCK));
        CHECK(at == 3 || memcmp(buffers[at].data, values[at].data, BLOCK) == 0);
    }
    CHECK(memkv_delete_batch(client, keys, COUNT, statuses) == MEMKV_OK);
    for (int at = 0; at < COUNT; at++)
        CHECK(statuses[at] == (at == 3 ? MEMKV_MISS : MEMKV_OK));
    free(put);
    free(got);
}

/* Polls until the batch of this ticket is done. */
static memkv_completions done(memkv_queue *queue, uint64_t ticket)
{
    struct pollfd waiting = {.fd = memkv_queue_fd(queue), .events = POLLIN};
    memkv_completions completions;
    CHECK(waiting.fd >= 0);
    CHECK(poll(&waiting, 1, 30000) == 1);
    CHECK(memkv_queue_drain(queue, &completions) == MEMKV_OK);
    CHECK(completions.count == 1 && completions.items[0].ticket == ticket);
    return completions;
}

static void a_queue(memkv_client *of, const char *prefix)
{
    char name[COUNT][16];
    memkv_bytes keys[COUNT], values[COUNT];
    memkv_buffer buffers[COUNT];
    unsigned char *put = malloc((size_t)COUNT * BLOCK), *got = malloc((size_t)COUNT * BLOCK);
    uint64_t ticket;
    memkv_queue *queue;
    memkv_completions completions;
    names(name, keys, prefix);
    for (int at = 0; at < COUNT; at++) {
        fill(put + at * BLOCK, BLOCK, (unsigned)at + 100);
        values[at].data = put + at * BLOCK;
        values[at].length = BLOCK;
        buffers[at] = room(got + at * BLOCK, BLOCK);
    }
    CHECK(memkv_queue_open(of, 2, &queue) == MEMKV_OK);
    CHECK(memkv_queue_wait(queue, 1000000) == 0);
    CHECK(memkv_queue_drain(queue, &completions) == MEMKV_OK && completions.count == 0);
    memkv_completions_free(&completions);

    CHECK(memkv_queue_put(queue, keys, values, COUNT, NULL, 0, &ticket) == MEMKV_OK);
    completions = done(queue, ticket);
    const memkv_completion *one = completions.items;
    CHECK(one->operation == MEMKV_OP_PUT && one->status == MEMKV_OK && *one->error == 0);
    CHECK(one->count == COUNT && one->statuses[COUNT - 1] == MEMKV_OK && one->took_ns > 0);
    memkv_completions_free(&completions);
    CHECK(completions.items == NULL && completions.count == 0);
    memkv_completions_free(&completions);

    /* The keys are taken over: what becomes of them afterwards does not matter. */
    memkv_bytes gone[COUNT];
    memcpy(gone, keys, sizeof gone);
    char scratch[16] = "nothing stored";
    gone[5].data = scratch;
    gone[5].length = strlen(scratch);
    CHECK(memkv_queue_get(queue, gone, buffers, COUNT, 20000, &ticket) == MEMKV_OK);
    memset(gone, 0xee, sizeof gone);
    memset(scratch, 0xee, sizeof scratch);
    CHECK(memkv_queue_wait(queue, 30000) == 1);
    completions = done(queue, ticket);
    one = completions.items;
    CHECK(one->operation == MEMKV_OP_GET && one->status == MEMKV_OK && one->count == COUNT);
    for (int at = 0; at < COUNT; at++) {
        CHECK(one->statuses[at] == (at == 5 ? MEMKV_MISS : MEMKV_OK));
        CHECK(one->infos[at].length == (at == 5 ? 0 : BLOCK));
        CHECK(at == 5 || memcmp(buffers[at].data, values[at].data, BLOCK) == 0);
    }
    memkv_completions_free(&completions);

    CHECK(memkv_queue_exists(queue, keys, COUNT, 0, &ticket) == MEMKV_OK);
    completions = done(queue, ticket);
    one = completions.items;
    CHECK(one->operation == MEMKV_OP_EXISTS && one->count == COUNT && one->statuses[7] == MEMKV_OK);
    memkv_completions_free(&completions);
    CHECK(memkv_queue_delete(queue, keys + 9, 1, 0, &ticket) == MEMKV_OK);
    completions = done(queue, ticket);
    CHECK(completions.items->operation == MEMKV_OP_DELETE && completions.items->statuses[0] == 0);
    memkv_completions_free(&completions);
    CHECK(memkv_queue_match_prefix(queue, keys, COUNT, 0, &ticket) == MEMKV_OK);
    completions = done(queue, ticket);
    CHECK(completions.items->operation == MEMKV_OP_MATCH_PREFIX && completions.items->matched == 9);
    memkv_completions_free(&completions);

    CHECK(memkv_queue_get(queue, keys, buffers, SIZE_MAX, 0, &ticket) == MEMKV_E_INVALID);
    CHECK(memkv_queue_get(NULL, keys, buffers, 1, 0, &ticket) == MEMKV_E_INVALID);
    CHECK(memkv_queue_put(queue, keys, values, 1, NULL, 0, NULL) == MEMKV_OK);
    keys[1].length = 0;
    CHECK(memkv_queue_put(queue, keys + 1, values, 1, NULL, 0, &ticket) == MEMKV_OK);
    /* Closing waits for what is under way, and frees what nobody drained. */
    memkv_queue_close(queue);
    memkv_queue_close(NULL);
    free(put);
    free(got);
}

static void *thread(void *number)
{
    char name[32];
    unsigned char *put = malloc(BLOCK), *got = malloc(BLOCK);
    unsigned salt = *(unsigned *)number;
    for (int round = 0; round < 20; round++) {
        snprintf(name, sizeof name, "thread-%u-%d", salt, round);
        fill(put, BLOCK, salt * 1000 + (unsigned)round);
        memkv_bytes value = {put, BLOCK};
        CHECK(memkv_put(client, text(name), value, NULL, NULL) == MEMKV_OK);
        CHECK(memkv_get_into(client, text(name), 0, room(got, BLOCK), NULL) == MEMKV_OK);
        CHECK(memcmp(put, got, BLOCK) == 0);
    }
    /* The text of an error is the thread's own. */
    CHECK(*memkv_error() == 0);
    memkv_bytes null = {NULL, salt + 1};
    CHECK(memkv_exists(client, null) == MEMKV_E_INVALID && *memkv_error() != 0);
    free(put);
    free(got);
    return NULL;
}

static void threads(void)
{
    pthread_t running[THREADS];
    unsigned numbers[THREADS];
    for (unsigned at = 0; at < THREADS; at++) {
        numbers[at] = at;
        CHECK(pthread_create(&running[at], NULL, thread, &numbers[at]) == 0);
    }
    for (unsigned at = 0; at < THREADS; at++)
        CHECK(pthread_join(running[at], NULL) == 0);
}

static void a_child(void)
{
    memkv_queue *queue;
    uint64_t ticket;
    memkv_bytes key = text("of the parent");
    memkv_completions completions;
    CHECK(memkv_put(client, key, text("value"), NULL, NULL) == MEMKV_OK);
    CHECK(memkv_queue_open(client, 2, &queue) == MEMKV_OK);
    CHECK(memkv_queue_exists(queue, &key, 1, 0, &ticket) == MEMKV_OK);
    CHECK(memkv_queue_wait(queue, 30000) == 1);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(memkv_queue_drain(queue, &completions) == MEMKV_OK && completions.count == 0);
        CHECK(memkv_exists(client, key) == MEMKV_OK);
        CHECK(memkv_put(client, text("of the child"), text("value"), NULL, NULL) == MEMKV_OK);
        CHECK(memkv_queue_exists(queue, &key, 1, 0, &ticket) == MEMKV_OK);
        completions = done(queue, ticket);
        CHECK(completions.items->statuses[0] == MEMKV_OK);
        memkv_completions_free(&completions);
        /* What only the parent's threads knew of is lost here: no case for who looks for leaks. */
        raise(SIGKILL);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    completions = done(queue, ticket);
    memkv_completions_free(&completions);
    CHECK(memkv_exists(client, text("of the child")) == MEMKV_OK);
    memkv_queue_close(queue);
}

static void nobody_there(void)
{
    char buffer[8];
    size_t matched;
    uint64_t ticket;
    memkv_queue *queue;
    memkv_client *lonely = open_at(nobody, "default");
    memkv_bytes key = text("k");
    memkv_buffer into = room(buffer, 8);
    CHECK(memkv_put(lonely, key, key, NULL, NULL) == MEMKV_E_UNAVAILABLE);
    CHECK(strstr(memkv_error(), nobody) != NULL);
    CHECK(memkv_get_into(lonely, key, 0, into, NULL) == MEMKV_E_UNAVAILABLE);
    CHECK(memkv_exists(lonely, key) == MEMKV_MISS);
    CHECK(memkv_match_prefix(lonely, &key, 1, &matched) == MEMKV_OK && matched == 0);
    CHECK(memkv_queue_open(lonely, 1, &queue) == MEMKV_OK);
    memkv_close(lonely);
    CHECK(memkv_queue_get(queue, &key, &into, 1, 0, &ticket) == MEMKV_OK);
    memkv_completions completions = done(queue, ticket);
    CHECK(completions.items->status == MEMKV_E_UNAVAILABLE);
    CHECK(completions.items->statuses[0] == MEMKV_E_UNAVAILABLE);
    CHECK(strstr(completions.items->error, nobody) != NULL);
    memkv_completions_free(&completions);
    memkv_queue_close(queue);
}

int main(int count, char **arguments)
{
    CHECK(count == 4);
    address = arguments[1];
    nobody = arguments[2];
    versions();
    client = open_at(address, arguments[3]);
    one_value();
    bad_arguments();
    batches();
    a_queue(client, "queue");
    threads();
    a_child();
    nobody_there();
    configuration();
    memkv_close(client);
    puts("all is as the header says");
    return 0;
}
