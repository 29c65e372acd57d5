// Moves memory of this process into files of their own, where it stays, private, at the addresses it has.
//
// In C++ because nothing may write to a part between its copy and the moment that the copy takes its place,
// and Python writes to memory with whatever it does. All that is written to in here is the stack.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

namespace {

// As backing.py has it.
struct Part {
  uint64_t first, length;
};

// Where pages have 4 KB. Elsewhere the kernel declines.
constexpr uint64_t kLargePage = 2 << 20;

void* at(uint64_t address) { return reinterpret_cast<void*>(address); }

bool copy(const Part& part, int file, uint64_t offset) {
  for (uint64_t done = 0; done < part.length;) {
    const ssize_t written =
        pwrite(file, at(part.first + done), part.length - done, static_cast<off_t>(offset + done));
    if (written <= 0) return false;
    done += static_cast<uint64_t>(written);
  }
  return true;
}

bool move(const Part& part) {
  const int file = memfd_create("pytest-ddp", MFD_CLOEXEC);
  if (file < 0) return false;
  // Only a page that is as far from a large one's begin in the file as in memory can be part of one.
  const uint64_t offset = part.first % kLargePage;
  const bool moved = copy(part, file, offset) &&
                     mmap(at(part.first), part.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file,
                          static_cast<off_t>(offset)) != MAP_FAILED;
  close(file);
  const uint64_t first = (part.first + kLargePage - 1) / kLargePage * kLargePage;
  const uint64_t end = (part.first + part.length) / kLargePage * kLargePage;
  if (moved && first < end) madvise(at(first), end - first, MADV_COLLAPSE);  // if it can be
  return moved;
}

}  // namespace

// How many of the parts have been moved: all, or those before the first that could not be.
extern "C" __attribute__((visibility("default"))) int backing_move(const Part* parts, int count) {
  for (int index = 0; index < count; index++)
    if (!move(parts[index])) return index;
  return count;
}
