package learn

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// Bounds of what is shown.
const (
	maxTimings = 100
	maxShown   = 20
)

// Question says what is asked.
type Question struct {
	Repo    string // full name
	Forks   bool   // what the pull requests of its forks taught
	Command string // if not "": what is known of this command; its template, as Template makes it
}

// Insights says what was learnt of a repository; an error of tgr.NotFound means that no job of it has ended.
func (l *Learner) Insights(ctx context.Context, q Question) (tgr.Insights, error) {
	heads, err := readHeads(ctx, l.db)
	if err != nil {
		return tgr.Insights{}, err
	}
	for _, h := range slices.Backward(heads) {
		if !strings.EqualFold(h.Repo, q.Repo) || h.Forks != q.Forks {
			continue
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		sp := l.spaces[h.space]
		if sp == nil {
			if sp, err = loadSpace(ctx, l.db, h.space, newSpace(h.Repo, h.Forks)); err != nil {
				return tgr.Insights{}, err
			}
		}
		return sp.insights(q.Command), nil
	}
	return tgr.Insights{}, tgr.Errorf("insights", tgr.NotFound, "nothing was learnt of %q: no job of it has ended yet", cut(q.Repo, 100))
}

// Learnt lists the repositories of which something is known, those that ran last first; their forks by themselves.
func (l *Learner) Learnt(ctx context.Context) ([]tgr.Learnt, error) {
	heads, err := readHeads(ctx, l.db)
	if err != nil {
		return nil, err
	}
	out := []tgr.Learnt{}
	for _, h := range heads {
		out = append(out, tgr.Learnt{Repo: h.Repo, Private: h.Private, Forks: h.Forks, Jobs: h.Jobs, Until: time.Unix(h.Now, 0).UTC()})
	}
	slices.SortFunc(out, func(a, b tgr.Learnt) int {
		return cmp.Or(b.Until.Compare(a.Until), cmp.Compare(a.Repo, b.Repo), cmp.Compare(a.Jobs, b.Jobs))
	})
	return out, nil
}

func (sp *space) insights(command string) tgr.Insights {
	in := tgr.Insights{Repo: sp.Head.Repo, Private: sp.Head.Private, Forks: sp.Head.Forks, Jobs: sp.Head.Jobs, Ours: sp.Head.Ours, Lost: sp.Head.Lost,
		Timings: sp.timings(), Flaky: sp.flaky(), Failures: sp.failures(), Lessons: sp.lessons(), Risks: sp.risks(), Suggestions: sp.suggestions()}
	if sp.Head.Now > 0 {
		in.Until = time.Unix(sp.Head.Now, 0).UTC()
	}
	if command != "" {
		c := sp.about(command)
		in.Command = &c
	}
	in.NotMeasured = []string{}
	if !slices.ContainsFunc(in.Timings, func(t tgr.Timing) bool { return t.MemoryMiB > 0 }) {
		in.NotMeasured = append(in.NotMeasured, "memory: fewer than eight jobs of one kind ran long enough in a machine that says how much is in use (a process without isolation does not)")
	}
	if !slices.ContainsFunc(in.Timings, func(t tgr.Timing) bool { return t.CPU > 0 }) {
		in.NotMeasured = append(in.NotMeasured, "processors: fewer than eight successes of one kind have said how much time they took (what runs in containers does not)")
	}
	if sp.Head.Lost > 0 {
		in.NotMeasured = append(in.NotMeasured, "failures: the logs of "+strconv.Itoa(sp.Head.Lost)+" jobs were gone before they were read")
	}
	return in
}

// place parts the key of a job or a step.
func place(key string) (workflow, job, step string) {
	parts := append(strings.Split(key, sep), "", "", "")
	return parts[0], parts[1], parts[2]
}

// timings are those of jobs and steps, the jobs first, those seen last first.
func (sp *space) timings() []tgr.Timing {
	var keys []string
	for key := range sp.units {
		if strings.Contains(key, sep) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(a, sep), strings.Count(b, sep)), cmp.Compare(sp.units[b].LastSeen, sp.units[a].LastSeen), cmp.Compare(a, b))
	})
	out := []tgr.Timing{}
	for _, key := range keys[:min(len(keys), maxTimings)] {
		u := sp.units[key]
		t := tgr.Timing{N: u.Own.N, Enough: u.Own.N >= Enough, Evidence: evidence(u)}
		t.Workflow, t.Job, t.Step = place(key)
		if t.Enough {
			t.Success = round(sp.mean(key, false))
			low, high := wilson(u.Own.S, u.Own.S+u.Own.F)
			t.Low, t.High = round(low), round(high)
		}
		if len(u.Ms) >= Enough {
			t.Median, t.P90, t.Timeout = millis(quantile(lately(u.Ms), 0.5)), millis(quantile(lately(u.Ms), 0.9)), TimeoutFor(u.Ms)
			if ratio, slower := drift(u.Ms); slower {
				t.Slower = round(ratio)
			}
		}
		if len(u.CPU) >= Enough {
			t.CPU = millis(quantile(u.CPU, 0.5))
		}
		if s := u.size(); s.Memory > 0 {
			t.PeakMiB, t.MemoryMiB, t.MemoryOf = s.Peak, s.Memory, runs(s.Evidence)
		}
		out = append(out, t)
	}
	return out
}

func millis(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

// round keeps three decimals: more would claim what is not known.
func round(f float64) float64 { return math.Round(f*1000) / 1000 }

func runs(ids []int64) []tgr.RunID {
	out := make([]tgr.RunID, 0, len(ids))
	for _, id := range ids[max(0, len(ids)-maxRuns):] {
		out = append(out, tgr.RunID(id))
	}
	return out
}

// flaky lists the steps that are flaky: those that are certain first.
func (sp *space) flaky() []tgr.Flake {
	out := []tgr.Flake{}
	for key, u := range sp.units {
		if strings.Count(key, sep) != 2 || len(u.Recent) < Enough {
			continue
		}
		f := u.flakiness()
		if !f.Definite && !f.Probable {
			continue
		}
		fl := tgr.Flake{Definite: f.Definite, Rate: round(f.Rate), FlipRate: round(float64(f.Flips) / float64(f.N-1)), Evidence: runs(f.Evidence)}
		fl.Workflow, fl.Job, fl.Step = place(key)
		out = append(out, fl)
	}
	slices.SortFunc(out, func(a, b tgr.Flake) int {
		if a.Definite != b.Definite {
			if a.Definite {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(a.Workflow+a.Job+a.Step, b.Workflow+b.Job+b.Step))
	})
	return out[:min(len(out), maxShown)]
}

// failures lists the clusters, the frequent ones first.
func (sp *space) failures() []tgr.Cluster {
	out := []tgr.Cluster{}
	for id, c := range sp.clusters {
		cl := tgr.Cluster{ID: idKey(id), Sample: c.Sample, N: c.N, Jobs: []string{}, Also: sp.also(c), Fixes: sp.links(edgeFixed, idKey(id), 3), Evidence: runs(c.Runs)}
		for _, j := range c.Jobs {
			cl.Jobs = append(cl.Jobs, strings.ReplaceAll(j, sep, " / "))
		}
		out = append(out, cl)
	}
	slices.SortFunc(out, func(a, b tgr.Cluster) int { return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.ID, b.ID)) })
	return out[:min(len(out), maxShown)]
}

// also lists the lines that failures with the first template of a cluster have printed too, those that nearly always come with it
// first. The share is of the failed steps that printed the first.
func (sp *space) also(c *cluster) []tgr.Link {
	first := sp.drain.byID[c.Templates[0]]
	if first == nil {
		return nil
	}
	var out []tgr.Link
	for to, e := range sp.from(edgeWith, idKey(first.ID)) {
		id, _ := strconv.ParseUint(to, 10, 64)
		if t := sp.drain.byID[id]; t != nil && e.N >= 2 {
			low, _ := wilson(float64(e.N), float64(max(e.N, first.Bad)))
			out = append(out, tgr.Link{To: cut(t.String(), 200), N: e.N, Low: round(low), Evidence: runs(e.Runs)})
		}
	}
	slices.SortFunc(out, func(a, b tgr.Link) int { return cmp.Or(cmp.Compare(b.Low, a.Low), cmp.Compare(a.To, b.To)) })
	return out[:min(len(out), 3)]
}

// risks lists the files after whose change a job surely fails more often than it does in all, the surest first.
func (sp *space) risks() []tgr.Risk {
	out := []tgr.Risk{}
	for key, e := range sp.edges {
		parts := strings.Split(key, "\x1e")
		if len(parts) != 3 || parts[0] != edgeBreaks || e.N < Enough {
			continue
		}
		u := sp.units[parts[2]]
		if u == nil {
			continue
		}
		d := faded(sp.Head.Now - e.At)
		low, _ := wilson(e.Bad*d, (e.OK+e.Bad)*d)
		if usual := 1 - sp.mean(parts[2], false); low > usual {
			r := tgr.Risk{File: parts[1], N: e.N, Low: round(low), Usual: round(usual), Evidence: runs(e.Runs)}
			r.Workflow, r.Job, _ = place(parts[2])
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b tgr.Risk) int {
		return cmp.Or(cmp.Compare(b.Low-b.Usual, a.Low-a.Usual), cmp.Compare(a.File, b.File), cmp.Compare(a.Workflow+a.Job, b.Workflow+b.Job))
	})
	return out[:min(len(out), maxShown)]
}

// links are the edges of a kind from a node, those with the highest lower bound first. The share is of what went well, or,
// where an edge has only failures, of all that the node has of its kind.
func (sp *space) links(kind, from string, most int) []tgr.Link {
	type scored struct {
		tgr.Link
		score float64
	}
	var found []scored
	total := 0.0
	edges := sp.from(kind, from)
	for _, e := range edges {
		total += (e.OK + e.Bad) * faded(sp.Head.Now-e.At)
	}
	for to, e := range edges {
		d := faded(sp.Head.Now - e.At)
		low, _ := wilson(e.OK*d, (e.OK+e.Bad)*d)
		if kind != edgeThen {
			low, _ = wilson((e.OK+e.Bad)*d, total)
		}
		found = append(found, scored{tgr.Link{To: to, N: e.N, Low: round(low), Evidence: runs(e.Runs)}, low})
	}
	slices.SortFunc(found, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(b.N, a.N), cmp.Compare(a.To, b.To))
	})
	out := []tgr.Link{}
	for _, f := range found[:min(len(found), most)] {
		out = append(out, f.Link)
	}
	return out
}

const lessonAfter = 3 // failures of one kind

// lessons are the commands that failed three times in the same way, unless that has faded.
func (sp *space) lessons() []tgr.Lesson {
	out := []tgr.Lesson{}
	for name := range sp.commands {
		total := 0.0
		type way struct {
			id string
			e  *edge
			w  float64
		}
		var ways []way
		for id, e := range sp.from(edgeFails, name) {
			w := e.Bad * faded(sp.Head.Now-e.At)
			total += w
			ways = append(ways, way{id, e, w})
		}
		for _, w := range ways {
			id, _ := strconv.ParseUint(w.id, 10, 64)
			c := sp.clusters[id]
			if w.e.N < lessonAfter || c == nil {
				continue
			}
			low, _ := wilson(w.w, total)
			le := tgr.Lesson{Command: name, Failure: c.Sample, N: w.e.N, Confidence: round(low), Evidence: runs(w.e.Runs)}
			if fixes := sp.links(edgeFixed, w.id, 1); len(fixes) > 0 {
				le.Fix = fixes[0].To
			}
			if le.Confidence >= 0.05 {
				out = append(out, le)
			}
		}
	}
	slices.SortFunc(out, func(a, b tgr.Lesson) int {
		return cmp.Or(cmp.Compare(b.Confidence, a.Confidence), cmp.Compare(b.N, a.N), cmp.Compare(a.Command+a.Failure, b.Command+b.Failure))
	})
	return out[:min(len(out), maxShown)]
}

// about says what is known of a command.
func (sp *space) about(name string) tgr.Command {
	c := tgr.Command{Name: name, Related: sp.links(edgeThen, name, maxShown), Failures: []tgr.Link{}}
	if k := sp.commands[name]; k != nil {
		c.N, c.Enough = k.Own.N, k.Own.N >= Enough
		if c.Enough {
			c.Success = round(sp.chance(name))
		}
	}
	for i, link := range c.Related {
		c.Related[i].Success = sp.next(name, link.To)
	}
	for _, link := range sp.links(edgeFails, name, maxShown) {
		id, _ := strconv.ParseUint(link.To, 10, 64)
		if cl := sp.clusters[id]; cl != nil {
			link.To = cl.Sample
			c.Failures = append(c.Failures, link)
		}
	}
	return c
}

// chance is the probability that a command succeeds, shrunk to that of all steps of the repository.
func (sp *space) chance(name string) float64 { return sp.commands[name].Own.mean(sp.mean("", true)) }

// next is the probability that a command succeeds right after another one; 0 where that was seen fewer than eight times. What
// was seen there is shrunk to how the command does wherever it runs.
func (sp *space) next(before, name string) float64 {
	e := sp.edges[strings.Join([]string{edgeThen, before, name}, "\x1e")]
	if e == nil || e.N < Enough || sp.commands[name] == nil {
		return 0
	}
	d := faded(sp.Head.Now - e.At)
	return round(beta{S: e.OK * d, F: e.Bad * d}.mean(sp.chance(name)))
}
