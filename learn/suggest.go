package learn

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// What is worth a word.
const (
	worthCaching  = 20 * time.Second // of a command that a cache may help
	worthParallel = time.Minute
	worthSplit    = 10 * time.Minute
	surelyPasses  = 20 // successes without a failure
)

// suggestions are what somebody could do, the one that matters most first.
func (sp *space) suggestions() []tgr.Suggestion {
	out := []tgr.Suggestion{}
	for _, key := range slices.Sorted(maps.Keys(sp.units)) {
		u := sp.units[key]
		if u.Own.N < Enough {
			continue
		}
		switch strings.Count(key, sep) {
		case 1:
			out = append(out, sp.ofJob(key, u)...)
		case 2:
			out = append(out, sp.ofStep(key, u)...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sp.commands)) {
		if c := sp.commands[name]; c.Own.N >= Enough {
			out = append(out, sp.ofCommand(name, c)...)
		}
	}
	slices.SortStableFunc(out, func(a, b tgr.Suggestion) int { return cmp.Compare(weight(b), weight(a)) })
	return out[:min(len(out), maxShown)]
}

// weight is what a suggestion matters: what it saves, as far as that is sure; failures cost people more than minutes.
func weight(s tgr.Suggestion) float64 {
	w := s.Saves.Minutes()
	switch s.Kind {
	case tgr.SuggestQuarantine, tgr.SuggestMemory:
		w += 10
	case tgr.SuggestTimeout, tgr.SuggestAvoid:
		w += 5
	case tgr.SuggestAlternative, tgr.SuggestSlower:
		w += 2
	}
	return w * s.Confidence
}

func at(kind, key string, s tgr.Suggestion) tgr.Suggestion {
	s.Kind = kind
	s.Workflow, s.Job, s.Step = place(key)
	return s
}

func evidence(u *unit) []tgr.RunID {
	var ids []int64
	for _, r := range u.Recent {
		if len(ids) == 0 || ids[len(ids)-1] != r[0] {
			ids = append(ids, r[0])
		}
	}
	return runs(ids)
}

func (sp *space) ofJob(key string, u *unit) []tgr.Suggestion {
	var out []tgr.Suggestion
	if t := TimeoutFor(u.Ms); t > 0 && len(u.Hangs) > 0 {
		out = append(out, at(tgr.SuggestTimeout, key, tgr.Suggestion{Confidence: 0.9, Evidence: runs(u.Hangs),
			Text: fmt.Sprintf("It ran into its time-out; %d successes took at most %s. timeout-minutes: %d would end it sooner.", len(u.Ms), short(quantile(u.Ms, 1)), minutes(t))}))
	}
	median := millis(quantile(u.Ms, 0.5))
	if len(u.Ms) >= Enough && median >= worthSplit {
		if s, ok := sp.split(key, median); ok {
			s.Evidence = evidence(u)
			out = append(out, s)
		}
	}
	workflow, _, _ := place(key)
	for _, need := range u.Needs {
		n := sp.units[workflow+sep+need]
		if n == nil || n.Outputs || len(n.Ms) < Enough || len(u.Ms) < Enough || n.Own.N < surelyPasses || slices.ContainsFunc(n.Recent, func(r result) bool { return !r.ok() }) {
			continue
		}
		if saves := min(millis(quantile(n.Ms, 0.5)), median); saves >= worthParallel {
			low, _ := wilson(n.Own.S, n.Own.S+n.Own.F)
			out = append(out, at(tgr.SuggestParallelise, key, tgr.Suggestion{Confidence: round(low / 2), Saves: saves, Evidence: evidence(n),
				Text: fmt.Sprintf("It waits for %s, which has no outputs and has not failed in its last %d runs. If it uses nothing that %s uploads, the two can run side by side.", need, len(n.Recent), need)}))
		}
	}
	return out
}

// split looks for a second long step in a long job.
func (sp *space) split(key string, median time.Duration) (tgr.Suggestion, bool) {
	var long []string
	most := time.Duration(0)
	for _, k := range slices.Sorted(maps.Keys(sp.units)) {
		if s := sp.units[k]; strings.HasPrefix(k, key+sep) && len(s.Ms) >= Enough {
			if d := millis(quantile(s.Ms, 0.5)); d*4 >= median {
				_, _, name := place(k)
				long, most = append(long, name), max(most, d)
			}
		}
	}
	if len(long) < 2 {
		return tgr.Suggestion{}, false
	}
	return at(tgr.SuggestSplit, key, tgr.Suggestion{Confidence: 0.5, Saves: median - most,
		Text: fmt.Sprintf("It takes %s, and %s take at least a quarter of that each. If they do not need each other, jobs of their own would take %s.", short(median.Milliseconds()), strings.Join(long, ", "), short(most.Milliseconds()))}), true
}

func (sp *space) ofStep(key string, u *unit) []tgr.Suggestion {
	var out []tgr.Suggestion
	if f := u.flakiness(); f.Definite || f.Probable {
		how, sure := "seems to fail now and then", 0.6
		if f.Definite {
			how, sure = fmt.Sprintf("failed %d times where the same code also passed", f.Both), 0.95
		}
		out = append(out, at(tgr.SuggestQuarantine, key, tgr.Suggestion{Confidence: sure, Evidence: runs(f.Evidence),
			Text: fmt.Sprintf("It %s: %d of its last %d runs failed. Until it is mended, a failure of it says little; nothing is retried or hidden by itself.", how, f.Fails, f.N)}))
	}
	switch s := u.size(); {
	case s.Ran > 0 && s.Memory > 0:
		out = append(out, at(tgr.SuggestMemory, key, tgr.Suggestion{Confidence: 0.9, Evidence: runs(s.Evidence),
			Text: fmt.Sprintf("Memory ran out in %d of its last runs, with %d MiB seen in use. Try a machine with %d MiB.", s.Ran, s.Peak, s.Memory)}))
	case s.Ran > 0:
		out = append(out, at(tgr.SuggestMemory, key, tgr.Suggestion{Confidence: 0.9, Evidence: runs(s.Evidence),
			Text: fmt.Sprintf("Memory ran out in %d of its last runs. A larger machine would help; how large is not known, as too few of its runs were measured.", s.Ran)}))
	case len(u.Killed) >= lessonAfter:
		out = append(out, at(tgr.SuggestMemory, key, tgr.Suggestion{Confidence: 0.6, Evidence: runs(u.Killed),
			Text: "It was killed with signal 9 at least three times, as happens when memory runs out, though no kernel said so. A larger machine may help."}))
	}
	if ratio, slower := drift(u.Ms); slower {
		before, now := u.Ms[:len(u.Ms)-Enough], u.Ms[len(u.Ms)-Enough:]
		a, b := quantile(before[max(0, len(before)-64):], 0.5), quantile(now, 0.5)
		if b-a >= 2000 {
			out = append(out, at(tgr.SuggestSlower, key, tgr.Suggestion{Confidence: 0.8, Saves: millis(b - a), Evidence: evidence(u),
				Text: fmt.Sprintf("It has become slower: %s in its last %d successes, %.1f times the %s of before.", short(b), Enough, ratio, short(a))}))
		}
	}
	return out
}

func (sp *space) ofCommand(name string, c *command) []tgr.Suggestion {
	var out []tgr.Suggestion
	if where := cachePath(name); where != "" && len(c.Plain) >= Enough && millis(quantile(c.Plain, 0.5)) >= worthCaching {
		s := tgr.Suggestion{Kind: tgr.SuggestCache, Confidence: 0.4, Evidence: runs(c.Runs),
			Text: fmt.Sprintf("%s takes %s in jobs without actions/cache. Keeping %s may help; how much is not known.", name, short(quantile(c.Plain, 0.5)), where)}
		if len(c.Cached) >= Enough {
			s.Saves, s.Confidence = millis(quantile(c.Plain, 0.5)-quantile(c.Cached, 0.5)), 0.9
			s.Text = fmt.Sprintf("%s takes %s in jobs without actions/cache and %s in jobs with it. Keep %s there too.", name, short(quantile(c.Plain, 0.5)), short(quantile(c.Cached, 0.5)), where)
		}
		if s.Saves >= 0 {
			out = append(out, s)
		}
	}
	low, high := wilson(c.Own.S, c.Own.S+c.Own.F)
	if high < 0.5 {
		out = append(out, tgr.Suggestion{Kind: tgr.SuggestAvoid, Confidence: round(1 - high), Evidence: runs(c.BadRuns),
			Text: fmt.Sprintf("%s fails more often than not: it succeeds in %d to %d %% of its runs.", name, int(low*100), int(high*100))})
	}
	if other, lower := sp.alternative(name, high); other != "" {
		out = append(out, tgr.Suggestion{Kind: tgr.SuggestAlternative, Confidence: round(lower - high), Evidence: runs(sp.commands[other].Runs),
			Text: fmt.Sprintf("%s succeeds in at most %d %% of its runs, %s in at least %d %%.", name, int(high*100), other, int(lower*100))})
	}
	return out
}

// alternative finds the command that does the same and surely does it better than high.
func (sp *space) alternative(name string, high float64) (best string, low float64) {
	low = high
	for _, other := range slices.Sorted(maps.Keys(sp.commands)) {
		c := sp.commands[other]
		if c.Own.N < Enough || !interchangeable(name, other) {
			continue
		}
		if l, _ := wilson(c.Own.S, c.Own.S+c.Own.F); l > low {
			best, low = other, l
		}
	}
	return best, low
}

// short is a duration in milliseconds as people say it.
func short(ms int64) string {
	d := millis(ms)
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return d.Round(time.Minute).String()
}

// minutes rounds a time-out up.
func minutes(d time.Duration) int { return int((d + time.Minute - 1) / time.Minute) }

// Hint is the one thing that matters most about a run that failed, for its pull request: that the step which failed is
// flaky, or what ended the same failure before. "" if there is none, or while the learner is busy: it may be called where
// others wait, and looks at memory alone.
func (l *Learner) Hint(run tgr.Run, jobs []tgr.Job) string {
	if !l.mu.TryLock() {
		return ""
	}
	defer l.mu.Unlock()
	sp := l.spaces[spaceOf(run.Event)]
	if sp == nil {
		return ""
	}
	for _, j := range jobs {
		if !j.Status.Done() || j.Conclusion != tgr.Failure || j.Blame == tgr.BlameOurs {
			continue
		}
		if s := sp.hint(run, j); s != "" {
			return s
		}
	}
	return ""
}

func (sp *space) hint(run tgr.Run, j tgr.Job) string {
	key := jobKey(run, j)
	for _, s := range stepsOf(Record{Run: run, Job: j}, key) {
		u := sp.units[s.key]
		if s.ok || u == nil || len(u.Recent) < Enough {
			continue
		}
		if f := u.flakiness(); f.Definite {
			return fmt.Sprintf("The step %s of %s is flaky: %d of its last %d runs failed, and %d of its failures were none on the same code (run %s).",
				s.Name, cmp.Or(j.Name, j.Key), f.Fails, f.N, f.Both, list(f.Evidence))
		}
	}
	o := sp.open[keyOf(branchOf(run.Event))+sep+key]
	if o == nil || sp.clusters[o.Cluster] == nil {
		return ""
	}
	c := sp.clusters[o.Cluster]
	fixes := sp.links(edgeFixed, idKey(o.Cluster), 1)
	if c.N < lessonAfter || len(fixes) == 0 {
		return ""
	}
	return fmt.Sprintf("%s has failed like this %d times (run %s). It went away with a change of %s (run %s).",
		cmp.Or(j.Name, j.Key), c.N, list(c.Runs), fixes[0].To, fixes[0].Evidence[len(fixes[0].Evidence)-1])
}

// Flaky names the flaky steps of an attempt that failed in nothing else; "" where another job or step has failed as well, or
// there is not enough data to be certain. jobs are all those of the attempt.
func (l *Learner) Flaky(run tgr.Run, jobs []tgr.Job) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	sp := l.spaces[spaceOf(run.Event)]
	if sp == nil {
		return ""
	}
	var names []string
	for _, j := range jobs {
		switch j.Conclusion {
		case tgr.Success, tgr.Skipped, tgr.Cancelled:
			continue // what was cancelled was so for another's failure
		case tgr.Failure:
		default:
			return ""
		}
		if j.Kind == tgr.CallJob {
			continue // it failed by the jobs of its workflow
		}
		steps := stepsOf(Record{Run: run, Job: j}, jobKey(run, j))
		at := slices.IndexFunc(steps, func(s stepRun) bool { return s.Conclusion == tgr.Failure })
		if at < 0 {
			return ""
		}
		u := sp.units[steps[at].key]
		if u == nil || len(u.Recent) < Enough || !u.flakiness().Definite {
			return ""
		}
		names = append(names, cmp.Or(j.Name, j.Key)+" / "+steps[at].Name)
	}
	return strings.Join(names, ", ")
}

func list(ids []int64) string {
	var s []string
	for _, id := range runs(ids) {
		s = append(s, id.String())
	}
	return strings.Join(s, ", ")
}
