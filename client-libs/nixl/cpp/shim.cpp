// The C++ between NIXL and Rust: takes its containers apart, calls Rust with pointers and lengths, and lets no
// exception out. There is nothing to know here but who owns what: objects that the core keeps for us are made
// here, each around a pointer of Rust's.
#include "abi.hpp"

#include <cstring>
#include <memory>

using namespace memkv_nixl;

extern "C" {

// As in src/edge.rs, which has the other half of each.
struct MemkvText {
    const char *data;
    std::size_t length;
};
struct MemkvSetting {
    MemkvText name;
    MemkvText value;
};
struct MemkvStretch {
    std::uintptr_t address;
    std::size_t length;
    std::uint64_t device;
};
struct MemkvTransfer {
    int direction;
    int local_kind;
    int remote_kind;
    const MemkvStretch *locals;
    std::size_t local_count;
    const MemkvStretch *remotes;
    std::size_t remote_count;
};
struct MemkvName {
    std::uint64_t device;
    MemkvText name;
};
struct MemkvCalls {
    MemkvText release;
    const MemkvText *setting_names;
    std::size_t setting_count;
    int (*has_device_memory)();
    void *(*open)(const MemkvSetting *, std::size_t);
    void (*close)(void *engine);
    int (*add)(void *engine, int kind, MemkvStretch, MemkvText name, void **registered);
    int (*remove)(void *engine, void *registered);
    int (*prepare)(const void *engine, const MemkvTransfer *, void **prepared);
    int (*post)(const void *engine, const void *prepared);
    int (*check)(const void *prepared);
    void (*release_prepared)(void *prepared);
    int (*query)(const void *engine, const MemkvName *, std::size_t, unsigned char *there);
};

// Called once, by Rust.
void *memkv_nixl_plugin(const MemkvCalls *calls);
}

namespace {

const MemkvCalls *calls = nullptr;

MemkvText text(const std::string &known) { return {known.data(), known.size()}; }

struct OurRegistered final : Registered {
    void *rust = nullptr;
};

struct OurPrepared final : Prepared {
    void *rust = nullptr;
};

std::vector<MemoryKind> our_kinds() {
    std::vector<MemoryKind> kinds = {kDram, kObject};
    if (calls->has_device_memory() != 0) kinds.push_back(kVram);
    return kinds;
}

std::vector<MemkvStretch> taken(const Stretches &list) {
    std::vector<MemkvStretch> stretches;
    stretches.reserve(list.items().size());
    // Not what it was registered as: cores up to 1.0.1 also find registrations that have ended.
    for (const Known &item : list.items()) {
        stretches.push_back({item.address, item.length, item.device});
    }
    return stretches;
}

template <class Body>
Status guarded(Body body) noexcept {
    try {
        return body();
    } catch (...) {
        return kBackend;
    }
}

class Memkv final : public Backend {
  public:
    explicit Memkv(const Opening &opening) : Backend(opening) {
        std::vector<MemkvSetting> settings;
        if (opening.settings) {
            for (const auto &[name, value] : *opening.settings) {
                settings.push_back({text(name), text(value)});
            }
        }
        engine_ = calls->open(settings.data(), settings.size());
        failed_ = engine_ == nullptr;
    }
    ~Memkv() override {
        if (engine_) calls->close(engine_);
    }

    bool is_remote() const override { return false; }
    bool is_local() const override { return true; }
    bool can_notify() const override { return false; }
    std::vector<MemoryKind> kinds() const override { return our_kinds(); }

    Status add(const Named &known, const MemoryKind &kind, Registered *&out) override {
        return guarded([&] {
            auto registered = std::make_unique<OurRegistered>();
            const MemkvStretch stretch = {known.address, known.length, known.device};
            const auto status = static_cast<Status>(
                calls->add(engine_, kind, stretch, text(known.name), &registered->rust));
            out = status == kOk ? registered.release() : nullptr;
            return status;
        });
    }
    Status remove(Registered *registered) override {
        return guarded([&] {
            std::unique_ptr<OurRegistered> known(static_cast<OurRegistered *>(registered));
            return known ? static_cast<Status>(calls->remove(engine_, known->rust)) : kOk;
        });
    }
    Status connect(const std::string &) override { return kOk; }
    Status disconnect(const std::string &) override { return kOk; }
    // It is the one that was added, which is removed in time.
    Status unload(Registered *) override { return kOk; }
    Status load_local(Registered *known, Registered *&out) override {
        out = known;
        return kOk;
    }

    Status prepare(const Direction &direction, const Stretches &local, const Stretches &remote,
                   const std::string &, Prepared *&out, const Extras *) const override {
        return guarded([&] {
            auto prepared = std::make_unique<OurPrepared>();
            const auto locals = taken(local), remotes = taken(remote);
            const MemkvTransfer transfer = {
                direction,      local.kind(),   remote.kind(),  locals.data(),
                locals.size(),  remotes.data(), remotes.size(),
            };
            const auto status =
                static_cast<Status>(calls->prepare(engine_, &transfer, &prepared->rust));
            out = status == kOk ? prepared.release() : nullptr;
            return status;
        });
    }
    // The lists are those that it was prepared with.
    Status post(const Direction &, const Stretches &, const Stretches &, const std::string &,
                Prepared *&prepared, const Extras *) const override {
        return static_cast<Status>(calls->post(engine_, rust(prepared)));
    }
    Status check(Prepared *prepared) const override {
        return static_cast<Status>(calls->check(rust(prepared)));
    }
    Status release(Prepared *prepared) const override {
        if (prepared) calls->release_prepared(rust(prepared));
        delete prepared;
        return kOk;
    }

    Status query(const List<Named> &list, std::vector<Found> &answers) const override {
        return guarded([&] {
            std::vector<MemkvName> names;
            names.reserve(list.items().size());
            for (const Named &item : list.items()) names.push_back({item.device, text(item.name)});
            std::vector<unsigned char> there(names.size());
            const auto status =
                static_cast<Status>(calls->query(engine_, names.data(), names.size(), there.data()));
            answers.clear();
            if (status != kOk) return status;
            answers.reserve(there.size());
            for (const unsigned char one : there) {
                answers.push_back(one ? Found(Settings()) : Found());
            }
            return kOk;
        });
    }

  private:
    static void *rust(Prepared *prepared) {
        return prepared ? static_cast<OurPrepared *>(prepared)->rust : nullptr;
    }

    void *engine_ = nullptr;
};

Backend *create(const Opening *opening) {
    try {
        return new Memkv(*opening);
    } catch (...) {
        return nullptr;
    }
}

void destroy(Backend *backend) { delete backend; }

const char *name() { return "MEMKV"; }

const char *release() { return calls->release.data; }

Settings settings() {
    Settings all;
    for (std::size_t at = 0; at < calls->setting_count; ++at) {
        const MemkvText &known = calls->setting_names[at];
        all.emplace(std::string(known.data, known.length), std::string());
    }
    return all;
}

Plugin plugin = {kPluginVersion, create, destroy, name, release, settings, our_kinds};

}  // namespace

void *memkv_nixl_plugin(const MemkvCalls *given) {
    calls = given;
    return &plugin;
}
