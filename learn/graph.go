package learn

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	"github.com/terraphim/tgr"
)

// The kinds of edges. Their nodes are templates of commands, clusters of failures, files, and fixes, which are the sets
// of files that a commit changed.
const (
	edgeThen   = "then"   // command → command that ran after it: OK, Bad by how that ended
	edgeFails  = "fails"  // command → cluster
	edgeFixed  = "fixed"  // cluster → fix: the files of the first green run after red
	edgeWith   = "with"   // template → template of the same failure
	edgeBreaks = "breaks" // file → job that ran on its change: OK, Bad by how that ended
)

// learnCommands joins each command to the one before it, if that succeeded.
func (sp *space) learnCommands(r Record, steps []stepRun) {
	before := ""
	for _, s := range steps {
		if s.command == "" {
			continue
		}
		if before != "" && before != s.command {
			sp.join(edgeThen, before, s.command, s.ok, int64(r.Run.ID))
		}
		if before = s.command; !s.ok {
			before = ""
		}
	}
}

// learnLines learns templates from the lines of all steps, and what the first failed step was about.
func (sp *space) learnLines(r Record, job string, steps []stepRun) {
	var failed *stepRun
	var errors []*template
	for i := range steps {
		s := &steps[i]
		switch {
		case s.ok:
			for _, t := range sp.templates(s.lines, maxGoodLines) {
				t.Good++
			}
		case failed == nil:
			failed = s
			seen := sp.templates(s.lines, maxBadLines)
			for _, t := range seen {
				t.Bad++
			}
			errors = telling(seen)
		}
	}
	files := changed(r.Run.Event)
	ok := r.Job.Conclusion == tgr.Success
	for _, f := range files {
		sp.join(edgeBreaks, f, job, ok, int64(r.Run.ID))
	}
	at := keyOf(branchOf(r.Run.Event)) + sep + job
	if failed == nil {
		if ok {
			sp.fixed(r, at, job, files)
		}
		return
	}
	c := sp.cluster(errors, failed)
	cl := sp.clusters[c]
	cl.N++
	cl.LastSeen = sp.Head.Seq
	cl.Runs = seenIn(cl.Runs, int64(r.Run.ID))
	if !slices.Contains(cl.Jobs, job) {
		cl.Jobs = last(cl.Jobs, maxRuns, job)
	}
	sp.touch(kindClu, idKey(c))
	if failed.command != "" {
		sp.join(edgeFails, failed.command, idKey(c), false, int64(r.Run.ID))
	}
	for i, a := range errors {
		for _, b := range errors[i+1:] {
			sp.join(edgeWith, idKey(a.ID), idKey(b.ID), false, int64(r.Run.ID))
		}
	}
	sp.open[at] = &open{Cluster: c, Tree: treeOf(r.Run.Event), LastSeen: sp.Head.Seq}
	sp.touch(kindOpen, at)
}

// fixed credits the files of a green run after red with the fix: not where the code is the same, or the job is flaky.
func (sp *space) fixed(r Record, at, job string, files []string) {
	o := sp.open[at]
	if o == nil {
		return
	}
	delete(sp.open, at)
	sp.touch(kindOpen, at)
	if o.Tree == treeOf(r.Run.Event) || len(files) == 0 || sp.clusters[o.Cluster] == nil || sp.units[job].flakiness().Definite {
		return
	}
	fix := cut(strings.Join(files[:min(len(files), 5)], " "), 300)
	sp.join(edgeFixed, idKey(o.Cluster), fix, true, int64(r.Run.ID))
}

// changed lists the files that a push changed, the folder for those deep in the tree, at most twenty. Only pushes say so.
func changed(e tgr.Event) []string {
	const largest = 256 << 10 // a larger payload would take longer than a step's learning may
	if e.Name != "push" || len(e.Payload) == 0 || len(e.Payload) > largest {
		return nil
	}
	var p struct {
		Commits []struct{ Added, Modified, Removed []string }
	}
	if json.Unmarshal(e.Payload, &p) != nil {
		return nil
	}
	var out []string
	for _, c := range p.Commits {
		for _, list := range [][]string{c.Added, c.Modified, c.Removed} {
			for _, f := range list {
				f = path.Clean(visible(f))
				if parts := strings.Split(f, "/"); len(parts) > 3 {
					f = strings.Join(parts[:3], "/") + "/…"
				}
				if f = cut(f, 120); !slices.Contains(out, f) {
					out = append(out, f)
				}
				if len(out) == 20 {
					slices.Sort(out)
					return out
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// templates learns the last lines of a step and returns their templates, each once, in the order of the lines.
func (sp *space) templates(lines []string, most int) []*template {
	var out []*template
	seen := map[*template]bool{}
	for _, line := range lines[max(0, len(lines)-most):] {
		words := mask(line)
		if len(words) == 0 {
			continue
		}
		t, _, gone := sp.drain.add(words, sp.Head.Seq)
		if gone != 0 {
			sp.touch(kindTpl, idKey(gone))
		}
		sp.touch(kindTpl, idKey(t.ID))
		if !seen[t] {
			seen[t] = true
			out = append(out, t)
		}
	}
	return out
}

const maxTelling = 5 // templates of one failure

// telling chooses the templates that tell of a failure: with a word for it, else the last ones; and not those that
// successes print about as often.
func telling(seen []*template) []*template {
	var out, rest []*template
	for _, t := range seen {
		switch {
		case t.Good > 0 && 2*t.Good >= t.Bad:
		case alarming(t.Words):
			out = append(out, t)
		default:
			rest = append(rest, t)
		}
	}
	if len(out) == 0 {
		out = rest[max(0, len(rest)-3):]
	}
	return out[:min(len(out), maxTelling)]
}

func alarming(words []string) bool {
	for _, w := range words {
		w = strings.ToLower(w)
		for _, a := range []string{"error", "fail", "fatal", "panic", "exception", "cannot", "undefined", "denied", "refused", "timeout",
			"timed", "assert", "expected", "unresolved", "unable", "missing", "killed", "segfault", "invalid", "not"} {
			if a == "not" && w == a || a != "not" && strings.Contains(w, a) {
				return true
			}
		}
	}
	return false
}

// cluster finds the failures that share half of their templates with this one, or begins a new set of them. A failure
// without lines is known by its command and exit status.
func (sp *space) cluster(errors []*template, failed *stepRun) uint64 {
	var ids []uint64
	for _, t := range errors {
		ids = append(ids, t.ID)
	}
	code := "no exit status"
	if failed.ExitCode != nil {
		code = "exit status " + exitClass(*failed.ExitCode)
	}
	sample := failed.command + ": " + code
	if len(ids) == 0 {
		ids = []uint64{hashOf("bare", failed.command, code)}
	} else {
		sample = cut(errors[0].String(), 200)
	}
	var best uint64
	most := 0.0
	common := map[uint64]float64{} // in how many clusters a template is: what is in many says little
	for _, c := range sp.clusters {
		for _, t := range c.Templates {
			common[t]++
		}
	}
	for id, c := range sp.clusters {
		if s := jaccard(c.Templates, ids, common); s > most || s == most && s > 0 && id < best {
			best, most = id, s
		}
	}
	if most >= 0.5 {
		return best
	}
	id := ids[0]
	for sp.clusters[id] != nil {
		id++
	}
	sp.clusters[id] = &cluster{Templates: ids, Sample: sample}
	return id
}

func exitClass(code int) string {
	if code > 128 || code < 0 {
		return "of a signal"
	}
	return "1 to 128"
}

// jaccard is the share of what is in either set that is in both, each counted the less the more common it is.
func jaccard(a, b []uint64, common map[uint64]float64) float64 {
	both, either := 0.0, 0.0
	for _, x := range a {
		w := 1 / (1 + common[x])
		if either += w; slices.Contains(b, x) {
			both += w
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			either += 1 / (1 + common[x])
		}
	}
	return both / either
}
