package learn

import (
	"math"
	"strings"

	"github.com/terraphim/tgr"
)

// Measures are what a learner did on a trace, beside a baseline that needs no learner.
type Measures struct {
	Jobs      int     `json:"jobs"`
	Outcome   Compare `json:"outcome_brier"`       // lower is better; baseline: as last time
	Median    Compare `json:"duration_pinball_50"` // milliseconds, lower is better; baseline: as last time
	P90       Compare `json:"duration_pinball_90"` //
	Kills     Compare `json:"false_kills_1000"`    // successes that a time-out would have ended, of 1,000; baseline: twice the mean
	Flaky     Compare `json:"flaky_f1"`            // higher is better; baseline: what fails in more than one of 20 runs
	Precision float64 `json:"flaky_precision"`
	Recall    float64 `json:"flaky_recall"`
	Slower    Compare `json:"slower_f1"` // baseline: the last eight took 1.2 times as long as the mean before
	Grouping  Compare `json:"grouping"`  // share of failures in a group that is exactly right; baseline: equal first alarming lines, as in the original
	Poisoned  bool    `json:"poisoned"`  // what forks ran has changed what is believed of the repository
}

// Compare is a figure beside that of the baseline.
type Compare struct {
	Learner  float64 `json:"learner"`
	Baseline float64 `json:"baseline"`
}

// meter measures while records are folded: it predicts each from those before it. The first half only teaches.
type meter struct {
	sp      *space
	n, half int
	sums    [2][4]float64 // learner, baseline: brier, pinball 50, pinball 90, kills
	seen    [4]int
	last    map[string]bool
	found   [2]map[int64]uint64 // by seq: the group of a failure
	slow    map[string]bool     // that were called slower, ever
	slowB   map[string]bool
}

// Measure folds a trace and measures each learner on its later half, which it has not seen when it predicts.
func Measure(t Trace) Measures {
	m := newMeter(len(t.Records) / 2)
	spaces := map[string]*space{spaceOf(tgr.Event{Repo: t.Records[0].Run.Event.Repo}): m.sp}
	alone := newSpace("", false) // as if there were no forks
	for _, r := range t.Records {
		name := spaceOf(r.Run.Event)
		if spaces[name] == nil {
			spaces[name] = newSpace("", r.Run.Event.Forked)
		}
		if spaces[name] == m.sp {
			m.record(r)
		} else {
			spaces[name].fold(r)
		}
		if !r.Run.Event.Forked {
			alone.fold(r)
		}
	}
	return m.result(t, alone)
}

func newMeter(half int) *meter {
	return &meter{sp: newSpace("", false), half: half, last: map[string]bool{}, found: [2]map[int64]uint64{{}, {}}, slow: map[string]bool{}, slowB: map[string]bool{}}
}

func (m *meter) record(r Record) {
	m.n++
	job := jobKey(r.Run, r.Job)
	steps := stepsOf(r, job)
	if m.n > m.half {
		for _, s := range steps {
			m.predict(s)
		}
	}
	m.sp.fold(r)
	for _, s := range steps {
		m.last[s.key] = s.ok
		u := m.sp.units[s.key]
		if _, slower := drift(u.Ms); slower {
			m.slow[s.key] = true
		}
		if n := len(u.Ms); n >= 3*Enough && mean(u.Ms[n-Enough:]) > 1.2*mean(u.Ms[:n-Enough]) {
			m.slowB[s.key] = true
		}
		if !s.ok {
			m.found[0][r.Seq] = m.sp.open[keyOf(branchOf(r.Run.Event))+sep+job].Cluster
			m.found[1][r.Seq] = firstLine(s.lines)
		}
	}
}

// firstLine is how the original knew a failure again: by the first hundred bytes of its first error.
func firstLine(lines []string) uint64 {
	for _, l := range lines {
		if alarming(strings.Fields(l)) {
			return hashOf(cut(l, 100))
		}
	}
	return 0
}

// predict scores what is believed of a step before it is learnt.
func (m *meter) predict(s stepRun) {
	u := m.sp.units[s.key]
	if u == nil || u.Own.N < Enough {
		return
	}
	y := 0.0
	if s.ok {
		y = 1
	}
	before := 0.0
	if m.last[s.key] {
		before = 1
	}
	m.score(0, math.Pow(m.sp.mean(s.key, false)-y, 2), math.Pow(before-y, 2))
	if !s.ok || len(u.Ms) < Enough {
		return
	}
	ms, lastMs := float64(s.ms), float64(u.Ms[len(u.Ms)-1])
	for i, q := range []float64{0.5, 0.9} {
		m.score(1+i, pinball(q, float64(quantile(lately(u.Ms), q)), ms), pinball(q, lastMs, ms))
	}
	m.score(3, above(ms, float64(TimeoutFor(u.Ms).Milliseconds())), above(ms, 2*mean(u.Ms)))
}

func (m *meter) score(i int, learner, baseline float64) {
	m.seen[i]++
	m.sums[0][i] += learner
	m.sums[1][i] += baseline
}

func above(x, limit float64) float64 {
	if x > limit {
		return 1
	}
	return 0
}

// pinball is the loss of a predicted quantile.
func pinball(q, predicted, y float64) float64 {
	return max(q*(y-predicted), (q-1)*(y-predicted))
}

func mean(ms []int64) float64 {
	sum := 0.0
	for _, v := range ms {
		sum += float64(v)
	}
	return sum / float64(max(1, len(ms)))
}

func (m *meter) result(t Trace, alone *space) Measures {
	out := Measures{Jobs: m.n}
	for i, into := range []*Compare{&out.Outcome, &out.Median, &out.P90, &out.Kills} {
		n := float64(max(1, m.seen[i]))
		*into = Compare{m.sums[0][i] / n, m.sums[1][i] / n}
	}
	out.Kills.Learner, out.Kills.Baseline = out.Kills.Learner*1000, out.Kills.Baseline*1000
	flaky, simple := map[string]bool{}, map[string]bool{}
	for key, u := range m.sp.units {
		if strings.Count(key, sep) != 2 {
			continue
		}
		f := u.flakiness()
		flaky[key] = f.Definite || f.Probable
		simple[key] = f.Rate > 0.05
	}
	out.Flaky.Learner, out.Precision, out.Recall = f1(flaky, t.Flaky)
	out.Flaky.Baseline, _, _ = f1(simple, t.Flaky)
	out.Slower.Learner, _, _ = f1(m.slow, t.Slower)
	out.Slower.Baseline, _, _ = f1(m.slowB, t.Slower)
	out.Grouping = Compare{grouping(m.found[0], t.Cause), grouping(m.found[1], t.Cause)}
	out.Poisoned = alone.mean("", true) != m.sp.mean("", true) || len(alone.clusters) != len(m.sp.clusters)
	return out
}

// f1 compares two sets.
func f1(found, truth map[string]bool) (f, precision, recall float64) {
	hit, all, real := 0.0, 0.0, 0.0
	for k, v := range found {
		if v {
			all++
			if truth[k] {
				hit++
			}
		}
	}
	for _, v := range truth {
		if v {
			real++
		}
	}
	if hit == 0 {
		return 0, 0, 0
	}
	precision, recall = hit/all, hit/real
	return 2 * precision * recall / (precision + recall), precision, recall
}

// grouping is the share of failures whose group holds exactly those of the same cause: the grouping accuracy of the
// literature on log parsers, which forgives nothing.
func grouping(found map[int64]uint64, truth map[int64]int) float64 {
	groups, causes, both := map[uint64]int{}, map[int]int{}, map[[2]uint64]int{}
	for seq, cause := range truth {
		if _, ok := found[seq]; !ok {
			continue
		}
		groups[found[seq]]++
		causes[cause]++
		both[[2]uint64{found[seq], uint64(cause)}]++
	}
	right, n := 0, 0
	for seq, cause := range truth {
		if g, ok := found[seq]; ok {
			n++
			if k := both[[2]uint64{g, uint64(cause)}]; k == groups[g] && k == causes[cause] {
				right++
			}
		}
	}
	return float64(right) / float64(max(1, n))
}
