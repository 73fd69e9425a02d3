package learn

import (
	"encoding/json"
	"testing"
)

// The bars: what the learner promises on made-up traces, each beside a baseline that needs no learner.
func TestMeasures(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3} {
		m := Measure(NewTrace(TraceConfig{Seed: seed, Commits: 300, Jobs: 10, Lines: 8, Forked: 0.1}))
		for _, bar := range []struct {
			what       string
			c          Compare
			higher     bool
			least      float64 // where higher is better, the most where lower is
			mustDiffer bool
		}{
			{"outcome", m.Outcome, false, 0.25, true},
			{"median", m.Median, false, 1e9, true},
			{"p90", m.P90, false, 1e9, true},
			{"false kills", m.Kills, false, 1, false},
			{"flaky", m.Flaky, true, 0.9, true},
			{"slower", m.Slower, true, 0.5, true},
			{"grouping", m.Grouping, true, 0.9, true},
		} {
			l, b, limit := bar.c.Learner, bar.c.Baseline, bar.least
			if bar.higher {
				l, b, limit = -l, -b, -limit
			}
			if l > limit || l > b || bar.mustDiffer && l == b {
				t.Errorf("seed %d: %s: %+v, the bar is %v", seed, bar.what, bar.c, bar.least)
			}
		}
		if m.Poisoned {
			t.Errorf("seed %d: what forks ran changed what is believed of the repository", seed)
		}
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("seed %d: %s", seed, data)
	}
}
