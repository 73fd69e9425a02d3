package learn

import (
	"math"
	"slices"
	"time"
)

// Enough is how many samples something needs before anything is said of it.
const Enough = 8

const (
	halfLife = 50  // observations after which one counts half
	pull     = 4.0 // observations that a parent's mean weighs
	kept     = 200 // durations of one step or job
	recent   = 48  // results of one step or job
)

// beta counts successes and failures, the older ones less. Its mean is that of a Beta distribution whose prior is the parent's.
type beta struct {
	S float64 `json:"s"`
	F float64 `json:"f"`
	N int     `json:"n"` // undecayed
}

func (b *beta) add(ok bool) {
	d := math.Exp2(-1.0 / halfLife)
	b.S, b.F = b.S*d, b.F*d
	if ok {
		b.S++
	} else {
		b.F++
	}
	b.N++
}

// mean is the probability of success, shrunk to the parent's.
func (b beta) mean(parent float64) float64 { return (b.S + pull*parent) / (b.S + b.F + pull) }

// wilson is the interval, at 95 %, of a share of which k of n were seen; counts may be decayed. Nothing seen says nothing: 0 to 1.
// E. B. Wilson: Probable inference, the law of succession, and statistical inference, JASA 1927.
func wilson(k, n float64) (low, high float64) {
	if n < 1e-9 { // faded to nothing
		return 0, 1
	}
	const z = 1.96
	p := k / n
	centre := p + z*z/(2*n)
	margin := z * math.Sqrt(p*(1-p)/n+z*z/(4*n*n))
	return max(0, (centre-margin)/(1+z*z/n)), min(1, (centre+margin)/(1+z*z/n))
}

// quantile is the exact one of samples, which it does not change, by the nearest rank; 0 without samples.
func quantile(samples []int64, q float64) int64 {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Clone(samples)
	slices.Sort(s)
	i := int(math.Ceil(q*float64(len(s)))) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// lately are the durations that the next one is guessed from: things become slower and faster.
func lately(ms []int64) []int64 { return ms[max(0, len(ms)-30):] }

// TimeoutFor is the time-out that durations in milliseconds suggest: max(3×p99, p99 + 2 min). 0: not enough data.
func TimeoutFor(ms []int64) time.Duration {
	if len(ms) < Enough {
		return 0
	}
	p99 := time.Duration(quantile(ms, 0.99)) * time.Millisecond
	return max(3*p99, p99+2*time.Minute)
}

// drift compares the last eight durations with those before: the ratio of the medians, and whether it is more than the
// spread of the earlier ones explains.
func drift(ms []int64) (ratio float64, slower bool) {
	if len(ms) < 3*Enough {
		return 1, false
	}
	now, then := ms[len(ms)-Enough:], ms[:len(ms)-Enough]
	then = then[max(0, len(then)-64):]
	a, b := quantile(now, 0.5), quantile(then, 0.5)
	if b <= 0 {
		return 1, false
	}
	deviations := make([]int64, len(then))
	for i, v := range then {
		deviations[i] = max(v-b, b-v)
	}
	sigma := 1.4826 * float64(quantile(deviations, 0.5))
	ratio = float64(a) / float64(b)
	// The median of n has a spread of 1.25 σ/√n. Five of them, because many are looked at; and a fifth slower is worth a word.
	return ratio, ratio >= 1.2 && float64(a-b) > 5*1.25*sigma/math.Sqrt(Enough)
}

// result is one execution: [run, tree, branch and outcome], short because there are many.
type result [3]int64

func newResult(run int64, tree, branch string, ok bool) result {
	r := result{run, int64(hashOf(tree) & 0xffffffff), int64(hashOf(branch)&0xffff) << 1}
	if tree == "" {
		r[1] = -run // code of its own
	}
	if ok {
		r[2]++
	}
	return r
}

func (r result) ok() bool      { return r[2]&1 == 1 }
func (r result) branch() int64 { return r[2] >> 1 }

// flake is something that happened in a run, and fades: [run, how often the step had run by then].
type flake [2]int64

// contradicted finds an earlier result on the same tree that is not what r is, and returns the run that failed.
func contradicted(before []result, r result) (failed int64, found bool) {
	for _, o := range slices.Backward(before) {
		if o[1] == r[1] && o.ok() != r.ok() {
			if o.ok() {
				return r[0], true
			}
			return o[0], true
		}
	}
	return 0, false
}

// remembered is for how many executions a flake counts.
const remembered = 200

// flakiness is what the recent results of a step say of it.
type flakiness struct {
	N, Fails, Flips int
	Both            int     // failures that were none on the same tree
	Definite        bool    // there are two such: one may have been an outage
	Probable        bool    // it fails on its own, on several branches, and comes back
	Rate            float64 // of failures
	Evidence        []int64 // runs that failed where the same tree passed, or alone
}

// flakiness judges the recent results. A failure that a fix ended looks like flakiness only if it was short and on a
// branch where nothing else happened, so "probable" asks for several of them, on several branches.
func (u *unit) flakiness() flakiness {
	rs := u.Recent
	f := flakiness{N: len(rs)}
	for i, r := range rs {
		if !r.ok() {
			f.Fails++
		}
		if i > 0 && r.ok() != rs[i-1].ok() {
			f.Flips++
		}
	}
	if f.N > 0 {
		f.Rate = float64(f.Fails) / float64(f.N)
	}
	for _, fl := range u.Flakes {
		if int64(u.Own.N)-fl[1] < remembered {
			f.Both++
			f.Evidence = append(f.Evidence, fl[0])
		}
	}
	f.Definite = f.Both >= 2
	alone, branches := lonely(rs)
	if !f.Definite && f.N >= 2*Enough && len(alone) >= 3 && branches >= 3 && len(alone)*4 >= f.Fails*3 {
		f.Probable, f.Evidence = true, alone
	}
	return f
}

// lonely lists the runs that failed between two passes of the same branch, and how many branches they are of.
func lonely(rs []result) (runs []int64, branches int) {
	byBranch := map[int64][]result{}
	for _, r := range rs {
		byBranch[r.branch()] = append(byBranch[r.branch()], r)
	}
	seen := map[int64]bool{}
	for i, r := range rs {
		if r.ok() || i == 0 || i == len(rs)-1 {
			continue
		}
		of := byBranch[r.branch()]
		at := slices.Index(of, r)
		if at > 0 && at < len(of)-1 && of[at-1].ok() && of[at+1].ok() && rs[i-1].ok() && rs[i+1].ok() {
			runs = append(runs, r[0])
			seen[r.branch()] = true
		}
	}
	return runs, len(seen)
}
