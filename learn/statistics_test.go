package learn

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// lognormal are durations in milliseconds about a median.
func lognormal(rnd *rand.Rand, n int, median, spread float64) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = int64(median * math.Exp(spread*rnd.NormFloat64()))
	}
	return out
}

// Of steps that did not change, few are called slower, whatever their spread; of those that take half as long again, nearly
// all are.
func TestDriftRates(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	const series = 2000
	for _, spread := range []float64{0.02, 0.1, 0.25} {
		alarms, found := 0, 0
		for range series {
			ms := lognormal(rnd, 72, 20_000, spread)
			if _, slower := drift(ms); slower {
				alarms++
			}
			if _, slower := drift(append(ms[:64:64], lognormal(rnd, Enough, 30_000, spread)...)); slower {
				found++
			}
		}
		t.Logf("spread %.2f: %d false alarms and %d of %d slowdowns found", spread, alarms, found, series)
		if alarms*1000 > series {
			t.Errorf("spread %.2f: %d of %d that did not change are called slower", spread, alarms, series)
		}
		if want := map[bool]int{true: 99, false: 30}[spread <= 0.1]; found*100 < want*series {
			t.Errorf("spread %.2f: %d of %d slowdowns are found, want %d %%", spread, found, series, want)
		}
	}
}

// A suggested time-out ends at most one success in a thousand, also of steps whose durations spread widely.
func TestTimeoutKills(t *testing.T) {
	rnd := rand.New(rand.NewPCG(8, 8))
	for _, median := range []float64{500, 60_000, 1_800_000} {
		for _, spread := range []float64{0.05, 0.3, 0.5} {
			kills, n := 0, 0
			for range 100 {
				ms := lognormal(rnd, Enough+200, median, spread)
				for i := Enough; i < len(ms); i++ {
					n++
					if ms[i] > TimeoutFor(ms[max(0, i-kept):i]).Milliseconds() {
						kills++
					}
				}
			}
			if kills*1000 > n {
				t.Errorf("median %v ms, spread %v: %d of %d successes would have been ended", median, spread, kills, n)
			}
		}
	}
}

// The interval holds the truth about as often as it says.
func TestWilsonCoverage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 9))
	const trials = 2000
	for _, n := range []int{Enough, 20, 100} {
		for _, p := range []float64{0.05, 0.3, 0.5, 0.9} {
			holds := 0
			for range trials {
				k := 0
				for range n {
					if rnd.Float64() < p {
						k++
					}
				}
				if low, high := wilson(float64(k), float64(n)); low <= p && p <= high {
					holds++
				}
			}
			if share := float64(holds) / trials; share < 0.91 {
				t.Errorf("n %d, p %v: the interval of 95 %% holds it in %.3f", n, p, share)
			}
		}
	}
}

// A job that breaks and is mended, on branches of its own and without ever being run twice on the same code, is not flaky.
func TestBrokenIsNotFlaky(t *testing.T) {
	rnd := rand.New(rand.NewPCG(10, 10))
	for trial := range 300 {
		u := &unit{}
		broken := map[int]int{} // by branch: commits until it is mended
		for i := range 200 {
			branch := rnd.IntN(4)
			if broken[branch] == 0 && rnd.IntN(12) == 0 {
				broken[branch] = 3 + rnd.IntN(6)
			}
			ok := broken[branch] == 0
			if !ok {
				broken[branch] = max(1, broken[branch]) - 1
			}
			res := newResult(int64(i+1), fmt.Sprint("t", trial, "-", i), fmt.Sprint("b", branch), ok)
			u.Own.add(ok)
			u.Recent = last(u.Recent, recent, res)
			if f := u.flakiness(); f.Definite || f.Probable {
				t.Fatalf("trial %d, after %d: %+v", trial, i, f)
			}
		}
	}
}

// A certain flake is forgotten: long after it was mended it is none.
func TestFlakesAreForgotten(t *testing.T) {
	u := &unit{}
	run := int64(0)
	observe := func(tree string, ok bool) {
		run++
		res := newResult(run, tree, "main", ok)
		u.Own.add(ok)
		if f, found := contradicted(u.Recent, res); found {
			u.Flakes = last(u.Flakes, maxRuns, flake{f, int64(u.Own.N)})
		}
		u.Recent = last(u.Recent, recent, res)
	}
	for i := range 3 {
		observe(fmt.Sprint("t", i), false)
		observe(fmt.Sprint("t", i), true)
	}
	if f := u.flakiness(); !f.Definite || f.Both != 3 {
		t.Fatalf("%+v", f)
	}
	for i := range remembered {
		observe(fmt.Sprint("later", i), true)
	}
	if f := u.flakiness(); f.Definite || f.Probable || f.Both != 0 {
		t.Errorf("%d runs later: %+v", remembered, f)
	}
}

// Success is learnt anew when it changes: within one half-life of observations the mean is nearer to the new truth than to the old.
func TestBetaFollows(t *testing.T) {
	for _, was := range []bool{true, false} {
		var b beta
		for range 500 {
			b.add(was)
		}
		for range halfLife + 10 {
			b.add(!was)
		}
		if m := b.mean(0.5); was && m > 0.5 || !was && m < 0.5 {
			t.Errorf("from %t to %t: %.2f", was, !was, m)
		}
		if b.N != 500+halfLife+10 {
			t.Errorf("%d observations", b.N)
		}
	}
}

// A mean lies between what was seen and what the level above says, and the more was seen the nearer it is to that.
func TestShrinkage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f := rapid.Float64Range(0, 70).Draw(t, "successes"), rapid.Float64Range(0, 70).Draw(t, "failures")
		parent := rapid.Float64Range(0, 1).Draw(t, "parent")
		b := beta{S: s, F: f}
		m := b.mean(parent)
		if s+f < 1e-6 {
			if math.Abs(m-parent) > 1e-6 {
				t.Fatalf("nothing seen: %v, the parent says %v", m, parent)
			}
			return
		}
		own := s / (s + f)
		if m < min(own, parent)-1e-9 || m > max(own, parent)+1e-9 {
			t.Fatalf("%v is not between %v and %v", m, own, parent)
		}
		if more := (beta{S: 10 * s, F: 10 * f}).mean(parent); math.Abs(more-own) > math.Abs(m-own)+1e-9 {
			t.Fatalf("of ten times as much: %v, %v from %v", more, m, own)
		}
	})
}

// Fading does not depend on how often somebody looks, never brings anything back, and halves in a month.
func TestFading(t *testing.T) {
	if got := faded(int64(month / time.Second)); math.Abs(got-0.5) > 1e-9 {
		t.Errorf("after a month %v is left", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.Int64Range(0, 1e9).Draw(t, "at")
		times := rapid.SliceOfN(rapid.Int64Range(0, 1e8), 1, 8).Draw(t, "times")
		often, once := edge{OK: 5, Bad: 3, At: at}, edge{OK: 5, Bad: 3, At: at}
		now := at
		for _, d := range times {
			now += d
			before := often.OK
			often.decay(now)
			often.decay(now - d/2) // a clock that goes back
			if often.OK > before {
				t.Fatalf("%v from %v", often.OK, before)
			}
		}
		once.decay(now)
		if math.Abs(often.OK-once.OK) > 1e-6 || math.Abs(often.Bad-once.Bad) > 1e-6 {
			t.Fatalf("looked at often %v and %v, once %v and %v", often.OK, often.Bad, once.OK, once.Bad)
		}
	})
}

// What is dropped for want of room are those seen least recently, and nothing before there is too much.
func TestOldest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := map[int]int64{}
		for i := range rapid.IntRange(0, 60).Draw(t, "rows") {
			rows[i] = rapid.Int64Range(0, 20).Draw(t, "seen")
		}
		limit := rapid.IntRange(1, 40).Draw(t, "limit")
		gone := oldest(rows, limit, func(n int64) int64 { return n })
		if len(rows) <= limit {
			if len(gone) != 0 {
				t.Fatalf("%d go of %d, with room for %d", len(gone), len(rows), limit)
			}
			return
		}
		if left := len(rows) - len(gone); left > limit || left < limit*9/10 {
			t.Fatalf("%d stay of %d, with room for %d", left, len(rows), limit)
		}
		newest := int64(-1)
		for _, k := range gone {
			newest = max(newest, rows[k])
		}
		for k, seen := range rows {
			if !slices.Contains(gone, k) && seen < newest {
				t.Fatalf("%d of %d stays, and one of %d goes", k, seen, newest)
			}
		}
	})
}
