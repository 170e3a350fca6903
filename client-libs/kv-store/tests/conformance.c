/* What kv_store_v1.h promises, called from C. It knows nothing of the backend behind it: it may be run against
 * anybody's.
 *
 *   conformance LIBRARY URI          all that the interface promises, on a namespace that is its own
 *   conformance LIBRARY URI save N   saves session N under the name "session", killed by whoever asks for it:
 *                                    it says "chunks" before the manifest, and waits for a line
 *   conformance LIBRARY URI churn N  saves sessions N, N + 1, ... under that name until it is killed; a line each
 *   conformance LIBRARY URI load     which whole session is under that name: "session N", or "none"
 *   conformance LIBRARY URI serve    a session through a server that goes away and comes back, told by lines
 */
#define _POSIX_C_SOURCE 200809L
#include <kv_store_v1.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHECK(what)                                                                    \
    do {                                                                               \
        if (!(what)) {                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                 \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

enum { CHUNK = 65536, CHUNKS = 24, HASH = 8, THREADS = 4 };

static const kv_store_v1_vtable *table;
static const char *uri;

/* Bytes that belong to one chunk of one session. */
static void fill(uint8_t *data, size_t length, unsigned salt)
{
    for (size_t at = 0; at < length; at++)
        data[at] = (uint8_t)((at * 2654435761u + salt * 40503u) >> 11);
}

/* FNV-1a, for a hash of content like any other. */
static void hash_of(const uint8_t *data, size_t length, uint8_t hash[HASH])
{
    uint64_t state = 1469598103934665603u;
    for (size_t at = 0; at < length; at++)
        state = (state ^ data[at]) * 1099511628211u;
    memcpy(hash, &state, HASH);
}

static kv_store_v1 *open_store(void)
{
    kv_store_v1 *store = table->open(uri);
    CHECK(store != NULL);
    return store;
}

/* Puts the chunks of a session, and writes its hashes behind each other. */
static int put_session(kv_store_v1 *store, unsigned session, uint8_t *hashes)
{
    static __thread uint8_t data[CHUNK];
    for (unsigned at = 0; at < CHUNKS; at++) {
        fill(data, CHUNK, session * CHUNKS + at);
        hash_of(data, CHUNK, hashes + at * HASH);
        int answer = table->put_chunk(store, hashes + at * HASH, HASH, data, CHUNK);
        if (answer < 0)
            return answer;
        /* What it was given is the caller's again. */
        memset(data, 0xEE, CHUNK);
    }
    return 0;
}

/* Reads a chunk and holds it against what was put. */
static void expect_chunk(kv_store_v1 *store, const uint8_t *hash, unsigned salt, size_t length)
{
    uint8_t *got = NULL, *expected = malloc(length);
    size_t got_length = 0;
    CHECK(table->get_chunk(store, hash, HASH, &got, &got_length) >= 0);
    CHECK(got != NULL && got_length == length);
    fill(expected, length, salt);
    CHECK(memcmp(got, expected, length) == 0);
    free(expected);
    free(got);
}

static void expect_manifest(kv_store_v1 *store, const char *name, const void *bytes, size_t length)
{
    uint8_t *got = NULL;
    size_t got_length = 1;
    CHECK(table->get_manifest(store, name, &got, &got_length) >= 0);
    CHECK(got_length == length);
    CHECK(length == 0 || memcmp(got, bytes, length) == 0);
    free(got);
}

static void expect_no_manifest(kv_store_v1 *store, const char *name)
{
    uint8_t *got = NULL;
    size_t got_length = 0;
    CHECK(table->get_manifest(store, name, &got, &got_length) < 0);
}

static void what_is_not_there(void)
{
    kv_store_v1 *store = open_store();
    uint8_t hash[HASH] = "absent!", *got = NULL;
    size_t length = 0;
    CHECK(table->get_chunk(store, hash, HASH, &got, &length) < 0);
    expect_no_manifest(store, "absent");
    if (table->version >= 2) {
        uint8_t none[3 * HASH] = {1};
        CHECK(table->prefetch_chunks(store, none, HASH, 3) >= 0);
        CHECK(table->prefetch_chunks(store, none, HASH, 0) >= 0);
        CHECK(table->get_chunk(store, none, HASH, &got, &length) < 0);
    }
    table->close(store);
}

static void one_session(void)
{
    static uint8_t hashes[CHUNKS * HASH];
    kv_store_v1 *store = open_store(), *other = open_store();
    CHECK(put_session(store, 1, hashes) >= 0);
    /* The same again, before and after they may have been sent. */
    CHECK(put_session(store, 1, hashes) >= 0);
    /* Also those that are kept back. */
    for (unsigned at = 0; at < CHUNKS; at++)
        expect_chunk(store, hashes + at * HASH, CHUNKS + at, CHUNK);
    CHECK(table->put_manifest(store, "one", hashes, sizeof hashes) >= 0);
    CHECK(put_session(store, 1, hashes) >= 0);
    CHECK(table->put_manifest(store, "one again", hashes, sizeof hashes) >= 0);
    expect_manifest(other, "one", hashes, sizeof hashes);
    expect_manifest(other, "one again", hashes, sizeof hashes);
    /* In order, without being told before. */
    for (unsigned at = 0; at < CHUNKS; at++)
        expect_chunk(other, hashes + at * HASH, CHUNKS + at, CHUNK);
    table->close(store);
    table->close(other);

    /* Another handle, and another order than told. */
    store = open_store();
    for (int turn = 0; turn < 2; turn++) {
        if (table->version >= 2)
            CHECK(table->prefetch_chunks(store, hashes, HASH, CHUNKS) >= 0);
        for (unsigned at = 0; at < CHUNKS; at++) {
            unsigned which = turn == 0 ? at : CHUNKS - 1 - at;
            expect_chunk(store, hashes + which * HASH, CHUNKS + which, CHUNK);
        }
        /* Once more than told. */
        expect_chunk(store, hashes, CHUNKS, CHUNK);
    }
    if (table->version >= 2) {
        uint8_t twice[2 * HASH];
        memcpy(twice, hashes, HASH);
        memcpy(twice + HASH, hashes, HASH);
        CHECK(table->prefetch_chunks(store, twice, HASH, 2) >= 0);
        expect_chunk(store, twice, CHUNKS, CHUNK);
        expect_chunk(store, twice, CHUNKS, CHUNK);
    }
    table->close(store);
}

static void manifests(void)
{
    kv_store_v1 *store = open_store(), *other = open_store();
    CHECK(table->put_manifest(store, "m", (const uint8_t *)"first", 5) >= 0);
    expect_manifest(other, "m", "first", 5);
    CHECK(table->put_manifest(store, "m", (const uint8_t *)"the second", 10) >= 0);
    expect_manifest(other, "m", "the second", 10);
    /* Without bytes: how some consumers have chunks sent. */
    CHECK(table->put_manifest(store, "m", NULL, 0) >= 0);
    expect_manifest(other, "m", "", 0);
    CHECK(table->put_manifest(store, "n \xc3\xa4/../%00", (const uint8_t *)"name", 4) >= 0);
    expect_manifest(other, "n \xc3\xa4/../%00", "name", 4);
    expect_manifest(other, "m", "", 0);
    CHECK(table->delete_manifest(other, "m") >= 0);
    expect_no_manifest(store, "m");
    expect_no_manifest(other, "m");
    expect_manifest(store, "n \xc3\xa4/../%00", "name", 4);
    table->close(store);
    table->close(other);
}

/* Hashes and chunks of all lengths that consumers use. */
static void sizes(void)
{
    static const size_t lengths[] = {1, 7, 4096, 65535, 65537, 1 << 20, (3 << 20) + 1};
    static const size_t hash_lengths[] = {1, 8, 20, 32, 64};
    enum { LENGTHS = sizeof lengths / sizeof *lengths, KINDS = sizeof hash_lengths / sizeof *hash_lengths };
    kv_store_v1 *store = open_store(), *other = open_store();
    uint8_t hash[64], *data = malloc(lengths[LENGTHS - 1]), *got;
    size_t length;
    for (int turn = 0; turn < 2; turn++) {
        for (unsigned at = 0; at < LENGTHS * KINDS; at++) {
            size_t expected = lengths[at % LENGTHS];
            memset(hash, 0, sizeof hash);
            hash[0] = (uint8_t)at;
            fill(data, expected, 9000 + at);
            if (turn == 0) {
                CHECK(table->put_chunk(store, hash, hash_lengths[at / LENGTHS], data, expected) >= 0);
            } else {
                CHECK(table->get_chunk(other, hash, hash_lengths[at / LENGTHS], &got, &length) >= 0);
                CHECK(length == expected && memcmp(got, data, length) == 0);
                free(got);
            }
        }
        if (turn == 0)
            CHECK(table->put_manifest(store, "sizes", (const uint8_t *)"", 0) >= 0);
    }
    free(data);
    table->close(store);
    table->close(other);
}

static void bad_arguments(void)
{
    kv_store_v1 *store = open_store();
    uint8_t hash[HASH] = {1}, *got;
    size_t length;
    CHECK(table->put_chunk(store, NULL, 8, hash, 1) < 0);
    CHECK(table->put_chunk(store, hash, 0, hash, 1) < 0);
    CHECK(table->put_chunk(store, hash, HASH, NULL, 1) < 0);
    CHECK(table->put_manifest(store, NULL, hash, 1) < 0);
    CHECK(table->get_chunk(store, hash, HASH, NULL, &length) < 0);
    CHECK(table->get_manifest(store, NULL, &got, &length) < 0);
    CHECK(table->delete_manifest(store, NULL) < 0);
    CHECK(table->put_chunk(NULL, hash, HASH, hash, 1) < 0);
    CHECK(table->get_manifest(NULL, "m", &got, &length) < 0);
    table->close(NULL);
    table->close(store);
    CHECK(table->open(NULL) == NULL);
    CHECK(table->open("") == NULL);
    CHECK(table->open("no-such-scheme://a:1/b") == NULL);
}

static void *one_thread(void *argument)
{
    uint8_t hashes[CHUNKS * HASH];
    char name[32];
    unsigned session = *(unsigned *)argument;
    snprintf(name, sizeof name, "thread %u", session);
    kv_store_v1 *store = open_store();
    CHECK(put_session(store, session, hashes) >= 0);
    CHECK(table->put_manifest(store, name, hashes, sizeof hashes) >= 0);
    for (unsigned at = 0; at < CHUNKS; at++)
        expect_chunk(store, hashes + at * HASH, session * CHUNKS + at, CHUNK);
    expect_manifest(store, name, hashes, sizeof hashes);
    table->close(store);
    return NULL;
}

static kv_store_v1 *shared;

/* Of one handle, which may be used by several threads at a time. */
static void *one_user(void *argument)
{
    unsigned session = *(unsigned *)argument;
    static __thread uint8_t data[CHUNK];
    uint8_t hash[HASH];
    for (unsigned at = 0; at < CHUNKS; at++) {
        fill(data, CHUNK, session * CHUNKS + at);
        hash_of(data, CHUNK, hash);
        CHECK(table->put_chunk(shared, hash, HASH, data, CHUNK) >= 0);
        expect_chunk(shared, hash, session * CHUNKS + at, CHUNK);
        if (at % 8 == 7)
            CHECK(table->put_manifest(shared, "shared", hash, HASH) >= 0);
    }
    return NULL;
}

static void threads(void *(*what)(void *), unsigned first)
{
    pthread_t started[THREADS];
    unsigned sessions[THREADS];
    for (unsigned at = 0; at < THREADS; at++) {
        sessions[at] = first + at;
        CHECK(pthread_create(&started[at], NULL, what, &sessions[at]) == 0);
    }
    for (unsigned at = 0; at < THREADS; at++)
        CHECK(pthread_join(started[at], NULL) == 0);
}

static void say(const char *line)
{
    puts(line);
    fflush(stdout);
}

static void wait_for_line(void)
{
    char line[80];
    CHECK(fgets(line, sizeof line, stdin) != NULL);
}

/* Between two tries of something that fails, until this second. */
static void pause_until(time_t end)
{
    struct timespec now, pause = {.tv_nsec = 10000000};
    clock_gettime(CLOCK_MONOTONIC, &now);
    CHECK(now.tv_sec < end);
    nanosleep(&pause, NULL);
}

static int save(unsigned session)
{
    static uint8_t hashes[CHUNKS * HASH];
    kv_store_v1 *store = open_store();
    CHECK(put_session(store, session, hashes) >= 0);
    say("chunks");
    wait_for_line();
    CHECK(table->put_manifest(store, "session", hashes, sizeof hashes) >= 0);
    say("manifest");
    /* Not closed: whoever is killed does not close either. */
    wait_for_line();
    return 0;
}

/* One session after the other under one name, whatever happens to the server; until it is killed. */
static void churn(unsigned session)
{
    static uint8_t hashes[CHUNKS * HASH];
    struct timespec now;
    kv_store_v1 *store = open_store();
    for (;; session++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        while (put_session(store, session, hashes) < 0
               || table->put_manifest(store, "session", hashes, sizeof hashes) < 0)
            pause_until(now.tv_sec + 120);
        printf("manifest %u\n", session);
        fflush(stdout);
    }
}

static int load(void)
{
    uint8_t *hashes = NULL, *got = NULL, first[CHUNK];
    size_t length = 0;
    kv_store_v1 *store = open_store();
    if (table->get_manifest(store, "session", &hashes, &length) < 0) {
        say("none");
        return 0;
    }
    CHECK(length == CHUNKS * HASH);
    /* A manifest that can be read has all of its chunks, and they are of one session. */
    unsigned session = 0;
    CHECK(table->get_chunk(store, hashes, HASH, &got, &length) >= 0 && length == CHUNK);
    do {
        session++;
        CHECK(session < 100000);
        fill(first, CHUNK, session * CHUNKS);
    } while (memcmp(first, got, CHUNK) != 0);
    free(got);
    for (unsigned at = 1; at < CHUNKS; at++)
        expect_chunk(store, hashes + at * HASH, session * CHUNKS + at, CHUNK);
    free(hashes);
    table->close(store);
    printf("session %u\n", session);
    return 0;
}

static int serve(void)
{
    static uint8_t hashes[CHUNKS * HASH], more[CHUNKS * HASH];
    uint8_t *got = NULL;
    size_t length = 0;
    struct timespec began, ended;
    kv_store_v1 *store = open_store();
    CHECK(put_session(store, 1, hashes) >= 0);
    CHECK(table->put_manifest(store, "session", hashes, sizeof hashes) >= 0);
    say("saved");
    wait_for_line();
    clock_gettime(CLOCK_MONOTONIC, &began);
    (void)put_session(store, 2, more);
    CHECK(table->put_manifest(store, "session", more, sizeof more) < 0);
    CHECK(table->get_chunk(store, hashes, HASH, &got, &length) < 0);
    CHECK(table->get_manifest(store, "session", &got, &length) < 0);
    CHECK(table->delete_manifest(store, "session") < 0);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("errors after %ld s\n", (long)(ended.tv_sec - began.tv_sec));
    fflush(stdout);
    wait_for_line();
    clock_gettime(CLOCK_MONOTONIC, &began);
    while (put_session(store, 2, more) < 0
           || table->put_manifest(store, "session", more, sizeof more) < 0)
        pause_until(began.tv_sec + 120);
    expect_manifest(store, "session", more, sizeof more);
    for (unsigned at = 0; at < CHUNKS; at++)
        expect_chunk(store, more + at * HASH, 2 * CHUNKS + at, CHUNK);
    table->close(store);
    say("served again");
    return 0;
}

int main(int count, char **words)
{
    CHECK(count >= 3);
    void *library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    const kv_store_v1_vtable *(*get)(void);
    *(void **)&get = dlsym(library, "kv_store_get_vtable");
    CHECK(get != NULL && get() != NULL);
    table = get();
    uri = words[2];
    CHECK(table->version == 1 || table->version == 2);
    if (count == 5 && strcmp(words[3], "save") == 0)
        return save((unsigned)atoi(words[4]));
    if (count == 5 && strcmp(words[3], "churn") == 0)
        churn((unsigned)atoi(words[4]));
    if (count == 4 && strcmp(words[3], "load") == 0)
        return load();
    if (count == 4 && strcmp(words[3], "serve") == 0)
        return serve();
    CHECK(count == 3);
    what_is_not_there();
    one_session();
    manifests();
    sizes();
    bad_arguments();
    threads(one_thread, 100);
    shared = open_store();
    threads(one_user, 200);
    table->close(shared);
    say("all is as the header says");
    return 0;
}
