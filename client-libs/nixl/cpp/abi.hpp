// What NIXL's core and a backend share in memory, for NIXL 1.0 and later: the order of the slots of a class of
// 27 virtual functions, the layouts of what goes in and out, and the numbers of kinds and answers.
//
// These declarations are ours; names, and everything that is not seen from outside, are our own. What must agree
// is pinned by the assertions at the end, and ci/engines reads the order of the slots off NIXL's own library.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace memkv_nixl {

enum MemoryKind : int { kDram = 0, kVram = 1, kObject = 3 };
enum Direction : int { kRead = 0, kWrite = 1 };
enum Status : int {
    kOk = 0,
    kBackend = -3,
    kNotSupported = -9,
};

using Settings = std::unordered_map<std::string, std::string>;
using Found = std::optional<Settings>;
using Notifications = std::vector<std::pair<std::string, std::string>>;

// Something registered; the core keeps the pointer and gives it back.
class Registered {
  public:
    bool is_private = true;
    virtual ~Registered() = default;
};

// A transfer that was prepared; the core keeps the pointer and gives it back.
class Prepared {
  public:
    virtual ~Prepared() = default;
};

// A stretch of memory, or of an object.
struct Stretch {
    std::uintptr_t address;
    std::size_t length;
    std::uint64_t device;
};

// The same when it is registered or asked about, with its long name.
struct Named : Stretch {
    std::string name;
};

// The same in a transfer, with what registering its surroundings gave.
struct Known : Stretch {
    Registered *registered;
};

// A list of the core's. It is looked at, and never made, copied or destroyed on this side.
template <class Item>
class List {
  public:
    List() = delete;
    List(const List &) = delete;
    List &operator=(const List &) = delete;

    MemoryKind kind() const { return kind_; }
    const std::vector<Item> &items() const { return items_; }

  private:
    const void *methods_of_core_;
    MemoryKind kind_;
    std::vector<Item> items_;
    friend struct Layout;
};

// What may come along with a transfer.
struct Extras {
    std::string notification;
    bool has_notification;
    std::string custom;
};

// What a backend is made with.
struct Opening {
    std::string agent;
    std::string kind;
    Settings *settings;
    bool wants_thread;
    std::uint64_t thread_delay_us;
    int locking;
    bool wants_telemetry;
};

using Stretches = List<Known>;

// A backend. The comments are the slots; the core calls by their numbers.
class Backend {
  public:
    explicit Backend(const Opening &opening)
        : kind_(opening.kind),
          settings_(opening.settings ? *opening.settings : Settings()),
          agent_(opening.agent),
          has_telemetry_(opening.wants_telemetry) {}
    Backend(const Backend &) = delete;
    Backend &operator=(const Backend &) = delete;

    /* 0, 1 */ virtual ~Backend() = default;
    /* 2 */ virtual bool is_remote() const = 0;
    /* 3 */ virtual bool is_local() const = 0;
    /* 4 */ virtual bool can_notify() const = 0;
    /* 5 */ virtual std::vector<MemoryKind> kinds() const = 0;
    /* 6 */ virtual Status add(const Named &, const MemoryKind &, Registered *&) = 0;
    /* 7 */ virtual Status remove(Registered *) = 0;
    /* 8 */ virtual Status connect(const std::string &) = 0;
    /* 9 */ virtual Status disconnect(const std::string &) = 0;
    /* 10 */ virtual Status unload(Registered *) = 0;
    /* 11 */ virtual Status prepare(const Direction &, const Stretches &, const Stretches &,
                                    const std::string &, Prepared *&, const Extras *) const = 0;
    /* 12 */ virtual Status post(const Direction &, const Stretches &, const Stretches &,
                                 const std::string &, Prepared *&, const Extras *) const = 0;
    /* 13 */ virtual Status check(Prepared *) const = 0;
    /* 14 */ virtual Status release(Prepared *) const = 0;
    /* 15 */ virtual Status view_remote(const void *, void *&, const Extras *) const {
        return kNotSupported;
    }
    /* 16 */ virtual Status view_local(const void *, void *&, const Extras *) const {
        return kNotSupported;
    }
    /* 17 */ virtual void drop_view(void *) const {}
    /* 18 */ virtual Status describe(const Registered *, std::string &) const { return kBackend; }
    /* 19 */ virtual Status address(std::string &) const { return kBackend; }
    /* 20 */ virtual Status learn_address(const std::string &, const std::string &) {
        return kBackend;
    }
    /* 21 */ virtual Status load_remote(const Named &, const MemoryKind &, const std::string &,
                                        Registered *&) {
        return kBackend;
    }
    /* 22 */ virtual Status load_local(Registered *, Registered *&) { return kBackend; }
    /* 23 */ virtual Status notifications(Notifications &) { return kBackend; }
    /* 24 */ virtual Status notify(const std::string &, const std::string &) const {
        return kBackend;
    }
    /* 25 */ virtual Status query(const List<Named> &, std::vector<Found> &) const {
        return kNotSupported;
    }
    /* 26 */ virtual Status estimate(const Direction &, const Stretches &, const Stretches &,
                                     const std::string &, Prepared *const &,
                                     std::chrono::microseconds &, std::chrono::microseconds &,
                                     int &, const void *) const {
        return kNotSupported;
    }

  private:
    // Functions of the core that were compiled into it read these.
    std::string kind_;
    Settings settings_;
    std::vector<char> events_;
    std::mutex events_lock_;

  protected:
    bool failed_ = false;
    const std::string agent_;
    const bool has_telemetry_;

  private:
    friend struct Layout;
};

// What a plug-in gives when it is loaded.
struct Plugin {
    int version;
    Backend *(*create)(const Opening *);
    void (*destroy)(Backend *);
    const char *(*name)();
    const char *(*release)();
    Settings (*settings)();
    std::vector<MemoryKind> (*kinds)();
};
constexpr int kPluginVersion = 1;

#if !defined(__GLIBCXX__) || !_GLIBCXX_USE_CXX11_ABI
#error "NIXL is built with libstdc++ and its C++11 ABI, and so must be its plug-ins"
#endif
#if __SIZEOF_POINTER__ != 8
#error "NIXL runs on machines of 64 bits"
#endif

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Winvalid-offsetof"
struct Layout {
    static_assert(sizeof(std::string) == 32, "strings");
    static_assert(sizeof(Settings) == 56, "maps");
    static_assert(sizeof(std::vector<char>) == 24, "vectors");
#if defined(__x86_64__)
    static_assert(sizeof(std::mutex) == 40, "locks");
    static_assert(sizeof(Backend) == 208, "a backend");
    static_assert(offsetof(Backend, failed_) == 160, "a backend that failed");
    static_assert(offsetof(Backend, agent_) == 168, "the agent of a backend");
    static_assert(offsetof(Backend, has_telemetry_) == 200, "the telemetry of a backend");
#endif
    static_assert(offsetof(Backend, kind_) == 8, "the kind of a backend");
    static_assert(offsetof(Backend, settings_) == 40, "the settings of a backend");
    static_assert(offsetof(Backend, events_) == 96, "the events of a backend");
    static_assert(offsetof(Backend, events_lock_) == 120, "the lock of its events");
    static_assert(sizeof(Stretch) == 24 && offsetof(Stretch, length) == 8, "stretches");
    static_assert(offsetof(Stretch, device) == 16, "devices of stretches");
    static_assert(sizeof(Named) == 56 && offsetof(Named, name) == 24, "stretches with names");
    static_assert(sizeof(Known) == 32 && offsetof(Known, registered) == 24, "known stretches");
    static_assert(sizeof(Stretches) == 40 && offsetof(Stretches, kind_) == 8, "lists");
    static_assert(offsetof(Stretches, items_) == 16, "items of lists");
    static_assert(sizeof(Registered) == 16 && sizeof(Prepared) == 8, "what the core keeps for us");
    static_assert(sizeof(Extras) == 72 && offsetof(Extras, custom) == 40, "extras");
    static_assert(offsetof(Extras, has_notification) == 32, "notifications in extras");
    static_assert(sizeof(Opening) == 96 && offsetof(Opening, kind) == 32, "openings");
    static_assert(offsetof(Opening, settings) == 64, "settings of openings");
    static_assert(offsetof(Opening, thread_delay_us) == 80, "delays of openings");
    static_assert(offsetof(Opening, locking) == 88, "locking of openings");
    static_assert(offsetof(Opening, wants_telemetry) == 92, "telemetry of openings");
    static_assert(sizeof(Plugin) == 56 && offsetof(Plugin, create) == 8, "the plug-in");
    static_assert(offsetof(Plugin, kinds) == 48, "kinds of the plug-in");
    static_assert(sizeof(Found) == 64, "answers");
};
#pragma GCC diagnostic pop

}  // namespace memkv_nixl
