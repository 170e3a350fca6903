// A session of llama.cpp in a store of kv_store_v1: the state of a sequence, cut into chunks under their hashes,
// and a manifest that lists them.
//
//   llama_session save    MODEL LIBRARY URI NAME   a prompt, its state stored; the tokens that follow
//   llama_session restore MODEL LIBRARY URI NAME   the state, if it is there, else the prompt; the same tokens
//   llama_session forget  MODEL LIBRARY URI NAME   the tokens that follow without the prompt
//   llama_session file    MODEL PATH               the same through the engine's own file, for its figures
//
// What it has found out is one line of JSON behind RESULT.
#include "kv_store_v1.h"
#include "llama.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr size_t chunk_bytes = 64 << 10;
constexpr size_t hash_bytes = 8;
constexpr int prompt_tokens = 1000, following_tokens = 40, turns = 9;

using Bytes = std::vector<uint8_t>;
using Tokens = std::vector<llama_token>;

void must(bool holds, const char *what)
{
    if (!holds)
        throw std::runtime_error(what);
}

double now()
{
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

uint64_t hash_of(const uint8_t *data, size_t length)
{
    uint64_t state = 1469598103934665603u;
    for (size_t at = 0; at < length; at++)
        state = (state ^ data[at]) * 1099511628211u;
    return state;
}

// How long it takes: the median of some turns.
template <typename What> double median_seconds(What what)
{
    std::vector<double> times;
    for (int turn = 0; turn < turns; turn++) {
        const double began = now();
        what();
        times.push_back(now() - began);
    }
    std::nth_element(times.begin(), times.begin() + turns / 2, times.end());
    return times[turns / 2];
}

// What was found out, as JSON.
class Told {
public:
    void number(const char *name, double value)
    {
        char text[64];
        snprintf(text, sizeof text, "\"%s\": %.9g", name, value);
        add(text);
    }
    void list(const char *name, const Tokens &values)
    {
        std::string text = "\"" + std::string(name) + "\": [";
        for (size_t at = 0; at < values.size(); at++)
            text += (at ? ", " : "") + std::to_string(values[at]);
        add(text + "]");
    }
    void print() const { printf("RESULT {%s}\n", text_.c_str()); }

private:
    void add(const std::string &text) { text_ += (text_.empty() ? "" : ", ") + text; }
    std::string text_;
};

// A model with one context.
class Engine {
public:
    explicit Engine(const char *path)
    {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_backend_init();
        model_ = llama_model_load_from_file(path, llama_model_default_params());
        must(model_ != nullptr, "the model cannot be loaded");
        auto parameters = llama_context_default_params();
        parameters.n_ctx = parameters.n_batch = 2048;
        parameters.n_threads = parameters.n_threads_batch = 1;
        context_ = llama_init_from_model(model_, parameters);
        must(context_ != nullptr, "there is no context");
    }
    ~Engine()
    {
        llama_free(context_);
        llama_model_free(model_);
    }
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    llama_context *context() { return context_; }

    void feed(Tokens tokens)
    {
        auto batch = llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()));
        must(llama_decode(context_, batch) == 0, "decoding failed");
    }
    // The likeliest tokens that follow.
    Tokens follow(llama_token last)
    {
        Tokens said;
        const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model_));
        while (said.size() < following_tokens) {
            feed({last});
            const float *logits = llama_get_logits_ith(context_, -1);
            last = static_cast<llama_token>(std::max_element(logits, logits + vocabulary) - logits);
            said.push_back(last);
        }
        return said;
    }
    Bytes state()
    {
        Bytes state(llama_state_seq_get_size(context_, 0));
        state.resize(llama_state_seq_get_data(context_, state.data(), state.size(), 0));
        must(!state.empty(), "there is no state");
        return state;
    }
    bool set_state(const Bytes &state)
    {
        return llama_state_seq_set_data(context_, state.data(), state.size(), 0) == state.size();
    }

private:
    llama_model *model_ = nullptr;
    llama_context *context_ = nullptr;
};

Tokens prompt()
{
    Tokens tokens;
    for (uint32_t at = 0; at < prompt_tokens; at++)
        tokens.push_back(static_cast<llama_token>(3 + (at * 2654435761u >> 13) % 256));
    return tokens;
}

// Sessions in a store.
class Sessions {
public:
    Sessions(const char *library, const char *uri)
    {
        void *loaded = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        must(loaded != nullptr, "the library cannot be loaded");
        using Get = const kv_store_v1_vtable *(*)();
        table_ = reinterpret_cast<Get>(dlsym(loaded, "kv_store_get_vtable"))();
        must(table_->version >= 2, "it is too old");
        store_ = table_->open(uri);
        must(store_ != nullptr, "the store cannot be opened");
    }
    ~Sessions() { table_->close(store_); }
    Sessions(const Sessions &) = delete;
    Sessions &operator=(const Sessions &) = delete;

    size_t save(const std::string &name, const Bytes &state)
    {
        Bytes hashes;
        for (size_t at = 0; at < state.size(); at += chunk_bytes) {
            const size_t length = std::min(chunk_bytes, state.size() - at);
            const uint64_t hash = hash_of(&state[at], length);
            const auto *bytes = reinterpret_cast<const uint8_t *>(&hash);
            must(table_->put_chunk(store_, bytes, hash_bytes, &state[at], length) >= 0, "a put");
            hashes.insert(hashes.end(), bytes, bytes + hash_bytes);
        }
        must(table_->put_manifest(store_, name.c_str(), hashes.data(), hashes.size()) >= 0,
             "the manifest");
        return hashes.size() / hash_bytes;
    }
    // Empty when it is not there, or not all of it.
    Bytes load(const std::string &name)
    {
        uint8_t *data = nullptr;
        size_t length = 0;
        if (table_->get_manifest(store_, name.c_str(), &data, &length) < 0)
            return {};
        const Bytes hashes(data, data + length);
        free(data);
        table_->prefetch_chunks(store_, hashes.data(), hash_bytes, length / hash_bytes);
        Bytes state;
        for (size_t at = 0; at + hash_bytes <= hashes.size(); at += hash_bytes) {
            if (table_->get_chunk(store_, &hashes[at], hash_bytes, &data, &length) < 0)
                return {};
            const uint64_t hash = hash_of(data, length);
            must(memcmp(&hash, &hashes[at], hash_bytes) == 0, "other bytes than were stored");
            state.insert(state.end(), data, data + length);
            free(data);
        }
        return state;
    }

private:
    const kv_store_v1_vtable *table_;
    kv_store_v1 *store_;
};

void save(Engine &engine, Sessions &sessions, const std::string &name, Told &told)
{
    double began = now();
    engine.feed(prompt());
    told.number("prompt_seconds", now() - began);
    const Bytes state = engine.state();
    began = now();
    told.number("chunks", static_cast<double>(sessions.save(name, state)));
    told.number("seconds", now() - began);
    told.number("bytes", static_cast<double>(state.size()));
    told.list("tokens", engine.follow(prompt().back()));
    const Bytes grown = engine.state();
    told.number("grown_chunks", static_cast<double>(sessions.save(name + " grown", grown)));
}

void restore(Engine &engine, Sessions &sessions, const std::string &name, Told &told)
{
    const Bytes state = sessions.load(name);
    const bool restored = !state.empty() && engine.set_state(state);
    told.number("restored", restored);
    told.number("seconds", median_seconds([&] { engine.set_state(sessions.load(name)); }));
    told.number("bytes", static_cast<double>(state.size()));
    if (restored)
        told.number("chunks", static_cast<double>(sessions.save(name + " again", engine.state())));
    else
        engine.feed(prompt());
    told.list("tokens", engine.follow(prompt().back()));
}

void file(Engine &engine, const char *model, const char *path, Told &told)
{
    const Tokens tokens = prompt();
    engine.feed(tokens);
    size_t written = 0, read = 0, count = 0;
    told.number("save_seconds", median_seconds([&] {
        written = llama_state_seq_save_file(engine.context(), path, 0, tokens.data(), tokens.size());
    }));
    told.number("bytes", static_cast<double>(written));
    Engine other(model);
    Tokens found(tokens.size());
    told.number("seconds", median_seconds([&] {
        read = llama_state_seq_load_file(other.context(), path, 0, found.data(), found.size(), &count);
    }));
    must(written > 0 && read == written && found == tokens, "the engine's file");
    told.list("tokens", other.follow(tokens.back()));
}

} // namespace

int main(int count, char **words)
{
    try {
        must(count >= 4, "see the first lines of the source");
        const std::string what = words[1];
        Told told;
        Engine engine(words[2]);
        if (what == "file") {
            file(engine, words[2], words[3], told);
        } else {
            must(count == 6, "see the first lines of the source");
            Sessions sessions(words[3], words[4]);
            if (what == "save")
                save(engine, sessions, words[5], told);
            else if (what == "restore")
                restore(engine, sessions, words[5], told);
            else
                told.list("tokens", engine.follow(prompt().back()));
        }
        told.print();
        return 0;
    } catch (const std::exception &error) {
        fprintf(stderr, "llama_session: %s\n", error.what());
        return 1;
    }
}
