package qemu

import (
	"math"
	"time"
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
