// The virtual clock: the records of a dry run, replayed rank by rank.
//
// A rank does its records in order. A computation takes what work.h says. A call begins when the last rank of its group
// has come to it, takes what collective_time.h says of the rank that moves the most, and ends for all at once; a
// message begins when both ends have come. So whoever waits, waits: imbalance, bubbles and stragglers come out, they
// are not assumed. A call that is under way beside a computation (CallPhase) begins when the last rank has issued it
// and the one before it over the axis has ended; who waits for it waits for what is left of it: the rest is hidden. It
// slows neither what is computed meanwhile nor calls over other axes.
//
// Ranks that have equal records, and whose groups are made of ranks that are alike in the same way, have equal times:
// they are one *class*, replayed once. That is exact (the coarsest partition in which every rank's groups look the
// same); in the worst case every rank is a class of its own.
//
// A pass may be replayed several times in a row, as a serving engine does with decode: then a microbatch enters the
// first stage when the last one has sent its token back. Times do not depend on threads: there is one.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/plan/mesh.h"
#include "emu/run/dry_run.h"
#include "emu/timeline/collective_time.h"
#include "emu/timeline/hardware_model.h"
#include "emu/timeline/work.h"

namespace shardproof {

/// A kernel, or a call, of a rank's program.
struct ClockStep {
  enum class Kind : std::int8_t { compute, call, await_token, post_token };
  Kind kind = Kind::compute;
  Op op{};
  std::int32_t layer = -1;
  std::int32_t microbatch = 0;
  std::int32_t record = 0;  ///< the first of its records, as recorded (RecordRun); `records` of them
  std::int32_t records = 1;
  std::int64_t rows = 0;         ///< of their results, of experts together
  KernelWork work;               ///< of a computation; its rate is that of its first record
  double seconds = 0;            ///< of a computation
  std::int32_t experts_at = -1;  ///< of experts: where theirs begin in Replay::expert_rows, one for each record
  // Of a call.
  CallPhase phase{};
  Axis axis{};
  Operation operation{};
  std::int32_t peer = -1;
  double wire = 0;  ///< bytes that the rank sends or takes in, the larger (collective_time.h)
};

/// When a class of ranks did a step.
struct ClockItem {
  double ready = 0;  ///< the rank came to it
  double begin = 0;  ///< it began: at once, or when the last rank of the group had come
  double end = 0;
  double hidden = 0;         ///< of a call that was under way: seconds for which the rank did something else
  std::int32_t step = 0;     ///< in the list of the class
  std::int32_t pass = 0;     ///< which of the passes in a row
  std::int32_t last = -1;    ///< the class that was waited for; -1: none
  std::int32_t item_of = 0;  ///< its item
};

/// Of the rows of a kernel, those of one expert, by its place among the rank's.
struct ExpertRows {
  std::int32_t expert = 0;
  std::int64_t rows = 0;
};

/// A call that was under way while its rank did something else.
struct Transfer {
  std::int32_t of_class = 0;
  std::int32_t item = 0;  ///< that awaited it
  double begin = 0;
  double end = 0;
};

struct Replay {
  std::vector<std::vector<ClockStep>> programs;      ///< of each list of records
  std::vector<std::vector<ExpertRows>> expert_rows;  ///< of each program
  std::vector<Transfer> transfers;                   ///< of the first pass
  std::vector<int> program_of_class;
  std::vector<std::vector<ClockItem>> items;  ///< by class, in order
  std::vector<int> class_of_rank;
  std::vector<int> ranks_of_class;  ///< how many
  std::vector<int> first_rank;      ///< of each class
  std::vector<double> pass_ends;    ///< of each pass in a row, when its last rank was done
  double overhead = 0;              ///< of the engine, before each pass

  double seconds() const { return pass_ends.back(); }
  const std::vector<ClockStep>& program(int of_class) const {
    return programs[static_cast<std::size_t>(program_of_class[static_cast<std::size_t>(of_class)])];
  }
  const std::vector<ClockItem>& of_rank(int rank) const {
    return items[static_cast<std::size_t>(class_of_rank[static_cast<std::size_t>(rank)])];
  }
};

struct ClockOptions {
  const HardwareModel& hardware;
  WorkRules rules;
  int gpus_per_node = 8;
  int passes = 1;  ///< in a row
};

/// Throws std::logic_error where calls do not meet: no dry run of a valid plan makes such records.
Replay replay(const DryTraces& traces, const Mesh& mesh, const ClockOptions& options);

/// How a group's ranks lie on nodes of so many consecutive ranks.
GroupShape shape_of(const std::vector<int>& ranks, int gpus_per_node);

}  // namespace shardproof
