package qemu

import (
	"math"
	"time"

	"github.com/terraphim/tgr/vm"
)

const (
	tscWindow = 25 * time.Millisecond
	tscRound  = 100 // kHz: twenty times what a measurement is off, and one second in six hours
)

// hostTSC measures how fast the host's time stamp counter counts, in kHz; 0: there is none. An emulated guest reads
// that counter. Told another rate it notices, and keeps time by counting interrupts, of which it loses some.
func hostTSC() int64 {
	ticks1, at1 := tscNow()
	if ticks1 == 0 {
		return 0
	}
	time.Sleep(tscWindow)
	ticks2, at2 := tscNow()
	khz := float64(ticks2-ticks1) / (float64(at2.Sub(at1)) / float64(time.Millisecond))
	return int64(math.Round(khz/tscRound)) * tscRound
}

// tscFile is in the cache folder the rate that was measured first.
const tscFile = "tsc.json"

// steady returns the rate in the cache folder if measured differs from it by no more than one step of its rounding, and keeps measured
// there otherwise. Snapshots depend on the rate: where the true one is between two steps, the next process may measure the other,
// and would find none of the snapshots that this one has made.
func steady(dir string, measured int64) int64 {
	var kept int64
	if vm.ReadVerdict(dir, tscFile, &kept) && max(kept-measured, measured-kept) <= tscRound {
		return kept
	}
	_ = vm.WriteVerdict(dir, tscFile, measured) // without it the next process measures for itself
	return measured
}

// tscNow reads the counter and the clock at the same time: of a few readings, those that are closest together.
func tscNow() (ticks uint64, at time.Time) {
	least := uint64(math.MaxUint64)
	for range 10 {
		before := rdtsc()
		now := time.Now()
		if took := rdtsc() - before; took < least {
			least, ticks, at = took, before+took/2, now
		}
	}
	return ticks, at
}
