package vm

import (
	"math"
	"time"
)

// demand is an exponentially weighted mean of arrivals: each counts 1 when it arrives and e times less with each
// period of over that passes, so that the sum is how many are to be expected in the next such period.
type demand struct {
	over time.Duration
	sum  float64
	at   time.Time // when sum was right
}

// arrive counts an arrival.
func (d *demand) arrive(now time.Time) {
	d.sum = d.recent(now) + 1
	d.at = now
}

// recent is how many arrivals there were lately.
func (d *demand) recent(now time.Time) float64 {
	if d.sum == 0 {
		return 0
	}
	return d.sum * math.Exp(-max(0, now.Sub(d.at).Seconds())/d.over.Seconds())
}

// poolTarget decides how many machines wait: as many as arrived lately, at least least, at most most.
func poolTarget(recent float64, least, most int) int {
	// What is left of one arrival long ago is not one more machine.
	n := math.Round(min(recent, float64(math.MaxInt32)))
	return max(0, min(max(int(n), least), most))
}
