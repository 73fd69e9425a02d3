package learn

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestWilson(t *testing.T) {
	low1, _ := wilson(1, 1)
	low2, high2 := wilson(40, 45)
	if low1 >= low2 {
		t.Errorf("1 of 1 has the lower bound %.3f, 40 of 45 has %.3f: it should be less", low1, low2)
	}
	if math.Abs(low2-0.765) > 0.001 || math.Abs(high2-0.952) > 0.001 { // by hand, from the formula
		t.Errorf("40 of 45: %.4f to %.4f", low2, high2)
	}
	if low, high := wilson(0, 0); low != 0 || high != 1 {
		t.Errorf("nothing seen: %v to %v", low, high)
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Float64Range(0, 1e6).Draw(t, "n")
		k := n * rapid.Float64Range(0, 1).Draw(t, "share")
		low, high := wilson(k, n)
		if !(low >= 0 && low <= high && high <= 1) || n > 1e-9 && (k/n < low-1e-9 || k/n > high+1e-9) {
			t.Fatalf("%v of %v: %v to %v", k, n, low, high)
		}
	})
}

func TestBeta(t *testing.T) {
	var b beta
	if got := b.mean(0.9); got != 0.9 {
		t.Errorf("without data the parent's mean counts, not %v", got)
	}
	for range 100 {
		b.add(true)
	}
	if got := b.mean(0.1); got < 0.93 {
		t.Errorf("after 100 successes the mean is %v", got)
	}
	for range 100 {
		b.add(false)
	}
	if got := b.mean(0.5); got > 0.25 || b.N != 200 {
		t.Errorf("after 100 failures as well it is %v of %d: the older ones should count less", got, b.N)
	}
}

func TestQuantile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SliceOfN(rapid.Int64Range(0, 1e6), 1, 300).Draw(t, "samples")
		q := rapid.Float64Range(0.01, 1).Draw(t, "q")
		before := slices.Clone(s)
		got := quantile(s, q)
		if !slices.Equal(s, before) {
			t.Fatal("the samples were changed")
		}
		atMost := 0
		for _, v := range s {
			if v <= got {
				atMost++
			}
		}
		if float64(atMost) < q*float64(len(s))-1e-9 || !slices.Contains(s, got) {
			t.Fatalf("the %v quantile of %v is %d: only %d are at most that", q, s, got, atMost)
		}
	})
	if quantile(nil, 0.5) != 0 {
		t.Error("a quantile of nothing")
	}
}

func TestTimeoutFor(t *testing.T) {
	steady := func(n int, ms int64) []int64 { return slices.Repeat([]int64{ms}, n) }
	for _, tt := range []struct {
		ms   []int64
		want time.Duration
	}{
		{steady(7, 1000), 0},                                              // not enough data
		{steady(8, 1000), 2*time.Minute + time.Second},                    // short: two minutes more
		{steady(8, 600_000), 30 * time.Minute},                            // long: three times
		{append(steady(199, 1000), 600_000), 2*time.Minute + time.Second}, // one of 200 is above p99
	} {
		if got := TimeoutFor(tt.ms); got != tt.want {
			t.Errorf("%d samples, the last %d ms: %s, want %s", len(tt.ms), tt.ms[len(tt.ms)-1], got, tt.want)
		}
	}
}

func TestDrift(t *testing.T) {
	before := []int64{}
	for i := range 40 {
		before = append(before, 1000+int64(i%5)*10)
	}
	for _, tt := range []struct {
		name string
		then []int64
		want bool
	}{
		{"none", before[:8], false},
		{"half as slow again", slices.Repeat([]int64{1500}, 8), true},
		{"a little", slices.Repeat([]int64{1100}, 8), false},
		{"faster", slices.Repeat([]int64{500}, 8), false},
		{"one outlier", append(slices.Clone(before[:7]), 90_000), false},
	} {
		if _, got := drift(append(slices.Clone(before), tt.then...)); got != tt.want {
			t.Errorf("%s: slower is %t", tt.name, got)
		}
	}
	if _, got := drift(slices.Repeat([]int64{1, 100}, 11)); got {
		t.Error("said with too little data")
	}
}

func TestFlakiness(t *testing.T) {
	type run struct {
		sha, branch string
		ok          bool
	}
	judge := func(rs []run) flakiness {
		u := &unit{}
		for i, r := range rs {
			res := newResult(int64(i+1), r.sha, r.branch, r.ok)
			if f, found := contradicted(u.Recent, res); found {
				u.Flakes = last(u.Flakes, maxRuns, flake{f, int64(i)})
			}
			u.Own.add(r.ok)
			u.Recent = last(u.Recent, recent, res)
		}
		return u.flakiness()
	}
	many := func(n int, f func(i int) run) (out []run) {
		for i := range n {
			out = append(out, f(i))
		}
		return out
	}
	sha := func(i int) string { return string(rune('a' + i)) }
	twice := judge([]run{{"a", "m", false}, {"a", "m", true}, {"b", "m", true}, {"c", "m", true}, {"c", "m", false}})
	if !twice.Definite || !slices.Equal(twice.Evidence, []int64{1, 5}) || twice.Flips != 2 {
		t.Errorf("failed and passed on two commits: %+v", twice)
	}
	if once := judge([]run{{"a", "m", false}, {"a", "m", true}}); once.Definite || once.Both != 1 {
		t.Errorf("once, which may have been an outage: %+v", once)
	}
	broken := judge(many(24, func(i int) run { return run{sha(i), "m", i < 8 || i > 15} }))
	if broken.Definite || broken.Probable {
		t.Errorf("broken for a while: %+v", broken)
	}
	alone := judge(many(40, func(i int) run { return run{sha(i), sha(i % 4), i%9 != 8} }))
	if !alone.Probable || alone.Definite || len(alone.Evidence) < 3 {
		t.Errorf("failing now and then, on several branches: %+v", alone)
	}
	if never := judge(many(40, func(i int) run { return run{"", "m", i%2 == 0} })); never.Definite {
		t.Errorf("commits that are not known are not the same one: %+v", never)
	}
}
