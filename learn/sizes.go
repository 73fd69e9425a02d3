package learn

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

// peak is how much memory was in use in one execution: [run, MiB].
type peak [2]int64

// size is what a machine for a job should have.
type size struct {
	Peak     int64 // p95 of what was in use, in MiB; 0: not enough data
	Memory   int64 // MiB that would do: 1.3 times Peak, or a step more where memory has run out lately
	Ran      int   // how often memory ran out lately
	Evidence []int64
}

// headroom is what a machine should have for each MiB that was seen in use: between two looks there is more.
const headroom = 1.3

// size suggests one. Where memory has run out in the last executions, what was seen is what the machine had, and not what the
// job wanted: then it is the next power of two.
func (u *unit) size() size {
	var s size
	for _, o := range u.OOM {
		if int64(u.Own.N)-o[1] < recent {
			s.Ran++
			s.Evidence = append(s.Evidence, o[0])
		}
	}
	if len(u.Memory) < Enough {
		return s
	}
	seen := make([]int64, len(u.Memory))
	for i, p := range u.Memory {
		seen[i] = p[1]
	}
	s.Peak = quantile(seen, 0.95)
	s.Memory = int64(math.Ceil(headroom * float64(s.Peak)))
	if s.Ran > 0 {
		s.Memory = int64(1) << bits.Len64(uint64(s.Memory))
		return s
	}
	high := slices.DeleteFunc(slices.Clone(u.Memory), func(p peak) bool { return p[1] < s.Peak })
	slices.SortStableFunc(high, func(a, b peak) int { return cmp.Compare(a[1], b[1]) })
	for _, p := range high {
		s.Evidence = append(s.Evidence, p[0])
	}
	return s
}
