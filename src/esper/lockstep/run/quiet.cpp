// Follows the ledgers of a run while only time can decide anything, so that Python need not: a poll of the
// supervisor takes some 0.1 ms from the ranks and pushes their data out of the processor's caches, this a
// hundredth of that. It returns to Python for whatever could be more than a healthy program's next
// collective, and judges nothing itself.
//
// A collective is settled here when all members have entered it with the same signature, which is what the
// chains in their records differ by from one to the next (recorder.py). Everything else is `unusual`: another
// kind of record, one with a detail of its own, a wait that failed, two groups open at once, a signature that
// is not the others'.

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <deque>
#include <unordered_map>
#include <vector>

namespace {

// As ledger.py and entry.py have them; `quiet_new` is given its size and refuses another.
struct Record {
  uint32_t kind, group, sequence, op, reduce_op, dtype, shape, site, tag, detail;
  int32_t root, peer;
  uint64_t elements, digest;
  double issued, wait_begun, wait_ended, done;
  uint32_t thread, flags;
};
constexpr uint32_t COLLECTIVE = 0, WAITED = 1, NATIVE = 2, FAILED = 8, POLLED = 16, OFFERED = 32, REFUSED = 64;
constexpr uint32_t NO_ROOM = 0xFFFFFFFF;
constexpr uint64_t STEP = 0x9E3779B97F4A7C15;
constexpr size_t MOST_AHEAD = 4096;  // collectives that one rank may be ahead of another
constexpr int MOST_THREADS = 32;     // of a rank, in what is skipped at once

// Why `quiet_wait` came back.
enum Reason : int { BROKEN = -1, TIME = 0, FILE_READY = 1, UNUSUAL = 2, UNKNOWN_GROUP = 3, INTERRUPTED = 4 };

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

struct Open {  // a collective that some have entered
  int entered = 0;
  bool unequal = false;
  uint64_t signature = 0;
  double since = 0.0;
};

struct Group {
  int members;
  int64_t settled = -1;  // the last collective before which nothing is open
  std::deque<Open> open;
};

struct Place {  // of one rank in a group, by the id that its table has for the name
  int group;    // -1: one in which nothing is followed
  uint32_t next = 0;
  uint64_t chain = 0;
};

struct Ledger {
  const char* map = nullptr;
  size_t size = 0;
  uint64_t capacity = 0, position = 0;
  std::unordered_map<uint32_t, Place> places;
};

class Quiet {
 public:
  Quiet(int ranks, size_t header, size_t count_at) : ledgers_(ranks), header_(header), count_at_(count_at) {}
  ~Quiet() {
    for (const Ledger& ledger : ledgers_) {
      if (ledger.map != nullptr) {
        munmap(const_cast<char*>(ledger.map), ledger.size);
      }
    }
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;

  bool open(int rank, const char* path, uint64_t capacity) {
    Ledger& ledger = ledgers_[rank];
    ledger.capacity = capacity;
    ledger.size = header_ + capacity * sizeof(Record);
    const int file = ::open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
      return false;
    }
    void* map = mmap(nullptr, ledger.size, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    ledger.map = map == MAP_FAILED ? nullptr : static_cast<const char*>(map);
    return ledger.map != nullptr;
  }

  int add_group(int members) {
    groups_.push_back(Group{members, -1, {}});
    return static_cast<int>(groups_.size()) - 1;
  }

  void name(int rank, uint32_t id, int group) { ledgers_[rank].places[id] = Place{group}; }

  int wait(int file, double tick, double quiet, double longest, const uint64_t* read, uint64_t* unknown) {
    for (Group& group : groups_) {  // whoever calls has seen them, and found nothing in it
      settle(group, true);
    }
    const double begun = now();
    pollfd watched{file, POLLIN, 0};
    while (true) {
      const double at = now();
      const int found = scan(at, unknown);
      if (found != TIME) {
        return found;
      }
      int open = 0;
      double since = at;
      for (const Group& group : groups_) {
        for (const Open& one : group.open) {
          if (one.entered > 0) {
            since = std::min(since, one.since);
            ++open;
            break;
          }
        }
      }
      if (open > 1) {
        return UNUSUAL;
      }
      if (at - begun >= longest || (at - since >= quiet && at - begun >= quiet) || behind(read)) {
        return TIME;
      }
      const int ready = poll(&watched, 1, static_cast<int>(tick * 1e3));
      if (ready != 0) {
        return ready > 0 ? FILE_READY : INTERRUPTED;
      }
    }
  }

  int64_t settled(int group) const { return groups_[group].settled; }

  // The first record from `from` on that is not of a collective settled long ago: `keep` others of its group
  // have been settled after it. Also the last record of each thread before it, in `threads` and `numbers`.
  uint64_t skip(int rank, uint64_t from, int64_t keep, uint32_t* threads, uint64_t* numbers, int* count) const {
    const Ledger& ledger = ledgers_[rank];
    *count = 0;
    uint64_t number = from;
    for (; number < ledger.position; ++number) {
      const Record record = *at(ledger, number);
      const auto place = ledger.places.find(record.group);
      const bool waits = record.wait_ended == 0.0 && (record.flags & NATIVE) == 0 &&
                         ((record.flags & WAITED) != 0 || record.wait_begun != 0.0);
      if (unusual(record) || (record.flags & OFFERED) != 0 || waits || place == ledger.places.end() ||
          place->second.group < 0 || record.sequence + keep > groups_[place->second.group].settled) {
        break;
      }
      const int known = static_cast<int>(std::find(threads, threads + *count, record.thread) - threads);
      if (known == MOST_THREADS) {
        break;
      }
      threads[known] = record.thread;
      numbers[known] = number;
      *count = std::max(*count, known + 1);
    }
    // The writer goes on meanwhile: what may have been written over is nobody's to skip.
    return written(ledger) - from < ledger.capacity ? number : from;
  }

 private:
  static bool unusual(const Record& record) {
    return record.kind != COLLECTIVE || record.detail != 0 || (record.flags & (FAILED | POLLED | REFUSED)) != 0 ||
           record.op == NO_ROOM || record.reduce_op == NO_ROOM || record.dtype == NO_ROOM || record.tag == NO_ROOM ||
           record.group == NO_ROOM;
  }

  const Record* at(const Ledger& ledger, uint64_t number) const {
    return reinterpret_cast<const Record*>(ledger.map + header_ + number % ledger.capacity * sizeof(Record));
  }

  uint64_t written(const Ledger& ledger) const {
    return __atomic_load_n(reinterpret_cast<const uint64_t*>(ledger.map + count_at_), __ATOMIC_ACQUIRE);
  }

  bool behind(const uint64_t* read) const {
    for (size_t rank = 0; rank < ledgers_.size(); ++rank) {
      if (ledgers_[rank].position - read[rank] > ledgers_[rank].capacity / 2) {
        return true;
      }
    }
    return false;
  }

  int scan(double when, uint64_t* unknown) {
    int found = TIME;
    for (size_t rank = 0; rank < ledgers_.size(); ++rank) {
      Ledger& ledger = ledgers_[rank];
      for (const uint64_t count = written(ledger); ledger.position < count; ++ledger.position) {
        const Record record = *at(ledger, ledger.position);
        if (written(ledger) - ledger.position >= ledger.capacity) {
          return BROKEN;
        }
        if (unusual(record)) {
          found = UNUSUAL;
        }
        if (record.kind != COLLECTIVE) {
          continue;
        }
        const auto place = ledger.places.find(record.group);
        if (place == ledger.places.end()) {
          unknown[0] = rank;
          unknown[1] = record.group;
          return UNKNOWN_GROUP;
        }
        if (place->second.group < 0) {
          found = UNUSUAL;
          continue;
        }
        if (record.sequence != place->second.next) {
          return BROKEN;  // a call that the backend refused, or numbers that begin anew
        }
        const uint64_t signature = record.digest - place->second.chain * STEP;
        place->second.chain = record.digest;
        ++place->second.next;
        const Entered entered = enter(groups_[place->second.group], record.sequence, signature, when);
        if (entered == TOO_FAR) {
          return BROKEN;
        }
        if (entered == UNEQUAL) {
          found = UNUSUAL;
        }
      }
    }
    return found;
  }

  enum Entered { EQUAL, UNEQUAL, TOO_FAR };

  static Entered enter(Group& group, uint32_t sequence, uint64_t signature, double when) {
    const int64_t ahead = static_cast<int64_t>(sequence) - group.settled - 1;
    if (ahead < 0 || ahead >= static_cast<int64_t>(MOST_AHEAD)) {
      return TOO_FAR;
    }
    while (static_cast<int64_t>(group.open.size()) <= ahead) {
      group.open.emplace_back();
    }
    Open& one = group.open[ahead];
    if (one.entered == 0) {
      one.signature = signature;
      one.since = when;
    }
    one.unequal = one.unequal || one.signature != signature;
    ++one.entered;
    const bool equal = !one.unequal;
    settle(group, false);
    return equal ? EQUAL : UNEQUAL;
  }

  static void settle(Group& group, bool though_unequal) {
    while (!group.open.empty() && group.open.front().entered == group.members &&
           (though_unequal || !group.open.front().unequal)) {
      group.open.pop_front();
      ++group.settled;
    }
  }

  std::vector<Ledger> ledgers_;
  std::vector<Group> groups_;
  size_t header_, count_at_;
};

}  // namespace

extern "C" {
#define EXPORTED __attribute__((visibility("default")))

EXPORTED void* quiet_new(int ranks, size_t header, size_t record, size_t count_at) {
  return record == sizeof(Record) ? new Quiet(ranks, header, count_at) : nullptr;
}
EXPORTED void quiet_delete(void* quiet) { delete static_cast<Quiet*>(quiet); }
EXPORTED int quiet_open(void* quiet, int rank, const char* path, uint64_t capacity) {
  return static_cast<Quiet*>(quiet)->open(rank, path, capacity) ? 0 : -1;
}
EXPORTED int quiet_add_group(void* quiet, int members) { return static_cast<Quiet*>(quiet)->add_group(members); }
EXPORTED void quiet_name(void* quiet, int rank, uint32_t id, int group) {
  static_cast<Quiet*>(quiet)->name(rank, id, group);
}
EXPORTED int quiet_wait(void* quiet, int file, double tick, double unmoved, double longest, const uint64_t* read,
                        uint64_t* unknown) {
  return static_cast<Quiet*>(quiet)->wait(file, tick, unmoved, longest, read, unknown);
}
EXPORTED int64_t quiet_settled(void* quiet, int group) { return static_cast<Quiet*>(quiet)->settled(group); }
EXPORTED uint64_t quiet_skip(void* quiet, int rank, uint64_t from, int64_t keep, uint32_t* threads, uint64_t* numbers,
                             int* count) {
  return static_cast<Quiet*>(quiet)->skip(rank, from, keep, threads, numbers, count);
}
}
