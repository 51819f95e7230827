#include "emu/judge/report.h"

namespace shardproof {

const char* to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::pass:
      return "pass";
    case Verdict::mismatch:
      return "mismatch";
    case Verdict::inconclusive:
      return "inconclusive";
    case Verdict::deadlock:
      return "deadlock";
    case Verdict::invalid:
      break;
  }
  return "invalid";
}

const char* to_string(TapVerdict verdict) {
  switch (verdict) {
    case TapVerdict::pass:
      return "pass";
    case TapVerdict::mismatch:
      return "mismatch";
    case TapVerdict::missing:
      return "missing";
    case TapVerdict::not_judged:
      return "not_judged";
    case TapVerdict::inconclusive:
      break;
  }
  return "inconclusive";
}

}  // namespace shardproof
