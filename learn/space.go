package learn

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// Bounds of what is kept of one repository, and of one job. What was seen least recently goes first. Runs of forks have a
// space of their own, with a quarter of the room.
const (
	maxUnits     = 4000
	maxCommands  = 1000
	maxTemplates = 4000
	maxClusters  = 500
	maxEdges     = 8000
	maxOpen      = 500
	maxSteps     = 200 // of one job
	maxGoodLines = 60  // of one step that succeeded, the last ones
	maxBadLines  = 200 // of one step that failed
	maxRuns      = 5   // shown as evidence
	mostMiB      = 1 << 26
)

// space is what is known of one repository: of its own runs, or of those of its forks. It is a fold over records: it
// depends on them and their order alone, and on no clock.
type space struct {
	Head     head
	units    map[string]*unit
	commands map[string]*command
	drain    *drain
	clusters map[uint64]*cluster
	edges    map[string]*edge
	open     map[string]*open

	limit func(n int) int
	dirty map[rowKey]bool
	out   map[string][]string // keys of edges by kind and first node; nil: to be made again
}

// rowKey names a row of the database within a space.
type rowKey struct{ kind, key string }

// The kinds of rows.
const (
	kindHead = "head"
	kindUnit = "unit"
	kindCmd  = "command"
	kindTpl  = "template"
	kindClu  = "cluster"
	kindEdge = "edge"
	kindOpen = "open"
)

// head is a space as a whole.
type head struct {
	Repo    string `json:"repo"`
	Private bool   `json:"private,omitempty"`
	Forks   bool   `json:"forks,omitempty"`
	Jobs    int    `json:"jobs"`
	Ours    int    `json:"ours"` // jobs that failed by a fault of ours, from which nothing else is learnt
	Lost    int    `json:"lost"` // jobs whose log was gone
	Seq     int64  `json:"seq"`
	Now     int64  `json:"now"`  // when the last of them ended, Unix seconds: the only clock
	Born    int64  `json:"born"` // templates so far
}

// unit is a repository, a workflow, a job or a step; its key is the path to it.
type unit struct {
	Own      beta     `json:"o"`
	Below    beta     `json:"b"`           // of the steps below, pooled: the prior of each
	Ms       []int64  `json:"d,omitempty"` // durations of successes, the latest last
	Recent   []result `json:"r,omitempty"`
	Flakes   []flake  `json:"f,omitempty"` // times that it failed and passed on one tree
	Hangs    []int64  `json:"h,omitempty"` // runs in which it timed out
	Killed   []int64  `json:"k,omitempty"` // runs in which it was killed with signal 9: often for want of memory
	OOM      []flake  `json:"y,omitempty"` // times that memory ran out, as the machine's kernel said
	Memory   []peak   `json:"m,omitempty"` // where it was measured
	CPU      []int64  `json:"t,omitempty"` // milliseconds of the processors, of successes
	Needs    []string `json:"n,omitempty"` // jobs
	Outputs  bool     `json:"u,omitempty"`
	Command  string   `json:"c,omitempty"`
	LastRun  int64    `json:"l"`
	LastSeen int64    `json:"q"`
}

// command is a template of commands, wherever in the repository it runs.
type command struct {
	Own      beta    `json:"o"`
	Plain    []int64 `json:"p,omitempty"` // durations of successes in jobs without a cache
	Cached   []int64 `json:"c,omitempty"` // in jobs with one
	Runs     []int64 `json:"r,omitempty"`
	BadRuns  []int64 `json:"f,omitempty"`
	LastSeen int64   `json:"q"`
}

// cluster is a set of failures that look the same.
type cluster struct {
	Templates []uint64 `json:"t"`
	Sample    string   `json:"s"` // the first of its lines, masked
	N         int      `json:"n"`
	Runs      []int64  `json:"r"`
	Jobs      []string `json:"j"`
	LastSeen  int64    `json:"q"`
}

// edge joins two nodes of the graph. Its counts lose half in a month.
type edge struct {
	OK       float64 `json:"o"`
	Bad      float64 `json:"b"`
	N        int     `json:"n"`
	Runs     []int64 `json:"r"`
	At       int64   `json:"a"`
	LastSeen int64   `json:"q"`
}

// open is a failure that nothing has followed yet.
type open struct {
	Cluster  uint64 `json:"c"`
	Tree     string `json:"s"`
	LastSeen int64  `json:"q"`
}

func newSpace(repo string, forks bool) *space {
	sp := &space{Head: head{Repo: repo, Forks: forks}, units: map[string]*unit{}, commands: map[string]*command{}, clusters: map[uint64]*cluster{},
		edges: map[string]*edge{}, open: map[string]*open{}, dirty: map[rowKey]bool{}}
	sp.limit = func(n int) int { return n }
	if forks {
		sp.limit = func(n int) int { return n / 4 }
	}
	sp.drain = newDrain(sp.limit(maxTemplates))
	return sp
}

func (sp *space) touch(kind, key string) { sp.dirty[rowKey{kind, key}] = true }

// sep parts the names of a key; names lose control characters.
const sep = "\x1f"

func jobKey(run tgr.Run, j tgr.Job) string {
	name := j.Key
	if j.Total > 1 && j.Name != "" {
		name = j.Name // of a matrix, each combination by itself
	}
	return keyOf(run.WorkflowFile, name)
}

func keyOf(names ...string) string {
	for i, n := range names {
		names[i] = cut(strings.TrimSpace(visible(n)), 120)
	}
	return strings.Join(names, sep)
}

// stepRun is one execution of a step.
type stepRun struct {
	tgr.Step
	key, command string
	ok           bool
	ms           int64
	lines        []string
}

// fold learns from one record.
func (sp *space) fold(r Record) {
	h := &sp.Head
	h.Repo, h.Private, h.Seq, h.Now = cut(r.Run.Event.Repo.FullName, 200), r.Run.Event.Repo.Private, r.Seq, max(h.Now, r.Job.Finished.Unix())
	sp.touch(kindHead, "")
	j := r.Job
	switch {
	case j.Kind != tgr.WorkJob, j.Origin != 0, j.Conclusion == tgr.Skipped, j.Conclusion == tgr.Cancelled, j.Started.IsZero():
		return
	case j.Blame == tgr.BlameOurs:
		h.Ours++
		return
	}
	h.Jobs++
	if r.Lost {
		h.Lost++
	}
	job := jobKey(r.Run, j)
	steps := stepsOf(r, job)
	cached := slices.ContainsFunc(steps, func(s stepRun) bool { return strings.HasPrefix(s.command, "uses actions/cache") })
	for i := range steps {
		sp.learnStep(r, &steps[i], cached)
	}
	sp.learnJob(r, job)
	sp.learnCommands(r, steps)
	sp.learnLines(r, job, steps)
	h.Born = sp.drain.born
	sp.trim()
}

// stepsOf are the steps of a record that ran and ended by themselves.
func stepsOf(r Record, job string) []stepRun {
	seen := map[string]int{}
	var out []stepRun
	at := map[int]int{}
	for _, st := range r.Job.Steps[:min(len(r.Job.Steps), maxSteps)] {
		if strings.HasPrefix(st.ID, "__") {
			continue // the server's own, such as "Set up job"
		}
		outcome := cmp.Or(st.Outcome, st.Conclusion)
		name := cmp.Or(st.ID, st.Name)
		if seen[name]++; seen[name] > 1 {
			name = fmt.Sprintf("%s #%d", cut(name, 100), seen[name])
		}
		if st.Started.IsZero() || outcome != tgr.Success && outcome != tgr.Failure && outcome != tgr.TimedOut {
			continue
		}
		c := r.Commands[st.Number]
		s := stepRun{Step: st, key: job + sep + keyOf(name), command: Template(c.Run, c.Uses), ok: outcome == tgr.Success,
			ms: max(0, st.Finished.Sub(st.Started).Milliseconds())}
		s.Outcome = outcome
		at[st.Number] = len(out)
		out = append(out, s)
	}
	for _, l := range r.Log {
		if i, ok := at[l.Step]; ok {
			out[i].lines = append(out[i].lines, l.Text)
		}
	}
	return out
}

func (sp *space) unit(key string) *unit {
	u := sp.units[key]
	if u == nil {
		u = &unit{}
		sp.units[key] = u
	}
	u.LastSeen = sp.Head.Seq
	sp.touch(kindUnit, key)
	return u
}

func (sp *space) command(name string) *command {
	c := sp.commands[name]
	if c == nil {
		c = &command{}
		sp.commands[name] = c
	}
	c.LastSeen = sp.Head.Seq
	sp.touch(kindCmd, name)
	return c
}

func (sp *space) learnStep(r Record, s *stepRun, cached bool) {
	u := sp.unit(s.key)
	u.Command = s.command
	u.observe(r, s.ok, s.ms)
	if s.Outcome == tgr.TimedOut {
		u.Hangs = seenIn(u.Hangs, int64(r.Run.ID))
	}
	if s.ExitCode != nil && (*s.ExitCode == 137 || *s.ExitCode == -9) {
		u.Killed = seenIn(u.Killed, int64(r.Run.ID))
	}
	u.took(int64(r.Run.ID), s.MemoryMiB, s.CPU, s.ok)
	if s.OutOfMemory {
		u.OOM = last(u.OOM, maxRuns, flake{int64(r.Run.ID), int64(u.Own.N)})
	}
	for key := s.key; ; {
		i := strings.LastIndex(key, sep)
		if i < 0 {
			if key == "" {
				break
			}
			key = ""
		} else {
			key = key[:i]
		}
		sp.unit(key).Below.add(s.ok)
	}
	if s.command == "" {
		return
	}
	c := sp.command(s.command)
	c.Own.add(s.ok)
	if !s.ok {
		c.BadRuns = seenIn(c.BadRuns, int64(r.Run.ID))
		return
	}
	c.Runs = seenIn(c.Runs, int64(r.Run.ID))
	if cached {
		c.Cached = last(c.Cached, kept, s.ms)
	} else {
		c.Plain = last(c.Plain, kept, s.ms)
	}
}

// observe adds one execution.
func (u *unit) observe(r Record, ok bool, ms int64) {
	u.Own.add(ok)
	u.LastRun = int64(r.Run.ID)
	if ok {
		u.Ms = last(u.Ms, kept, ms)
	}
	res := newResult(int64(r.Run.ID), treeOf(r.Run.Event), branchOf(r.Run.Event), ok)
	if f, found := contradicted(u.Recent, res); found && !slices.ContainsFunc(u.Flakes, func(o flake) bool { return o[0] == f }) {
		u.Flakes = last(u.Flakes, maxRuns, flake{f, int64(u.Own.N)})
	}
	u.Recent = last(u.Recent, recent, res)
}

// treeOf names the code of an event: what a commit holds, whoever made it and when; where that is not known the commit.
func treeOf(e tgr.Event) string { return cut(cmp.Or(e.Tree, e.SHA), 64) }

func branchOf(e tgr.Event) string { return cmp.Or(e.HeadRef, e.Ref) }

// seenIn appends a run to those that are evidence, once.
func seenIn(list []int64, run int64) []int64 {
	if slices.Contains(list, run) {
		return list
	}
	return last(list, maxRuns, run)
}

// last appends to a list of at most n.
func last[T any](list []T, n int, v T) []T {
	if list = append(list, v); len(list) > n {
		list = slices.Delete(list, 0, len(list)-n)
	}
	return list
}

func (sp *space) learnJob(r Record, key string) {
	j := r.Job
	ok := j.Conclusion == tgr.Success
	u := sp.unit(key)
	u.observe(r, ok, max(0, j.Finished.Sub(j.Started).Milliseconds()))
	u.Needs = nil
	for _, n := range j.Needs[:min(len(j.Needs), 20)] {
		u.Needs = append(u.Needs, keyOf(n))
	}
	u.Outputs = len(j.Outputs) > 0
	if j.Conclusion == tgr.TimedOut {
		u.Hangs = seenIn(u.Hangs, int64(j.Run))
	}
	memory, cpu, out := int64(0), time.Duration(0), false
	for _, s := range j.Steps[:min(len(j.Steps), maxSteps)] {
		memory, cpu, out = max(memory, s.MemoryMiB), cpu+s.CPU, out || s.OutOfMemory
	}
	u.took(int64(j.Run), memory, cpu, ok)
	if out {
		u.OOM = last(u.OOM, maxRuns, flake{int64(j.Run), int64(u.Own.N)})
	}
	sp.unit(keyOf(r.Run.WorkflowFile)).Own.add(ok)
	sp.unit("").Own.add(ok)
}

// took adds what one execution took of its machine, as far as that was measured. A failure may have ended early, so it
// says nothing of the processors' time; what it had of memory it needed.
func (u *unit) took(run, memory int64, cpu time.Duration, ok bool) {
	if memory > 0 {
		u.Memory = last(u.Memory, recent, peak{run, min(memory, mostMiB)})
	}
	if cpu > 0 && ok {
		u.CPU = last(u.CPU, recent, max(1, cpu.Milliseconds()))
	}
}

// mean is the probability that a unit succeeds, shrunk level by level. below: as one of the steps under it.
func (sp *space) mean(key string, below bool) float64 {
	parent := 0.5
	i := strings.LastIndex(key, sep)
	step := strings.Count(key, sep) == 2
	switch {
	case i >= 0:
		parent = sp.mean(key[:i], below || step)
	case key != "":
		parent = sp.mean("", below)
	}
	u := sp.units[key]
	switch {
	case u == nil:
		return parent
	case below:
		return u.Below.mean(parent)
	}
	return u.Own.mean(parent)
}

// add counts an edge.
func (sp *space) join(kind, from, to string, ok bool, run int64) *edge {
	key := strings.Join([]string{kind, from, to}, "\x1e")
	e := sp.edges[key]
	if e == nil {
		e = &edge{At: sp.Head.Now}
		sp.edges[key] = e
		sp.out = nil
	}
	e.decay(sp.Head.Now)
	if ok {
		e.OK++
	} else {
		e.Bad++
	}
	e.N++
	e.LastSeen = sp.Head.Seq
	e.Runs = seenIn(e.Runs, run)
	sp.touch(kindEdge, key)
	return e
}

// from lists the edges of a kind from a node by their other end.
func (sp *space) from(kind, node string) map[string]*edge {
	if sp.out == nil {
		sp.out = map[string][]string{}
		for key := range sp.edges {
			if i := strings.LastIndex(key, "\x1e"); i >= 0 {
				sp.out[key[:i]] = append(sp.out[key[:i]], key)
			}
		}
	}
	prefix := kind + "\x1e" + node
	found := map[string]*edge{}
	for _, key := range sp.out[prefix] {
		found[key[len(prefix)+1:]] = sp.edges[key]
	}
	return found
}

const month = 30 * 24 * time.Hour

// decay brings an edge to a time.
func (e *edge) decay(now int64) {
	d := faded(now - e.At)
	e.OK, e.Bad, e.At = e.OK*d, e.Bad*d, max(e.At, now)
}

// faded is what is left of a count after some seconds.
func faded(seconds int64) float64 {
	return math.Exp2(-float64(max(0, seconds)) / month.Seconds())
}

// trim keeps the bounds.
func (sp *space) trim() {
	trim(sp, kindUnit, sp.units, maxUnits, func(u *unit) int64 { return u.LastSeen })
	trim(sp, kindCmd, sp.commands, maxCommands, func(c *command) int64 { return c.LastSeen })
	if len(sp.edges) > sp.limit(maxEdges) {
		sp.out = nil
	}
	trim(sp, kindEdge, sp.edges, maxEdges, func(e *edge) int64 { return e.LastSeen })
	trim(sp, kindOpen, sp.open, maxOpen, func(o *open) int64 { return o.LastSeen })
	for _, id := range oldest(sp.clusters, sp.limit(maxClusters), func(c *cluster) int64 { return c.LastSeen }) {
		delete(sp.clusters, id)
		sp.touch(kindClu, idKey(id))
	}
	for _, id := range sp.drain.trim() {
		sp.touch(kindTpl, idKey(id))
	}
}

func trim[T any](sp *space, kind string, rows map[string]T, limit int, seen func(T) int64) {
	for _, key := range oldest(rows, sp.limit(limit), seen) {
		delete(rows, key)
		sp.touch(kind, key)
	}
}

// oldest lists what is to go so that a tenth of the limit is free: nothing while the limit is kept.
func oldest[K cmp.Ordered, V any](rows map[K]V, limit int, seen func(V) int64) []K {
	if len(rows) <= limit {
		return nil
	}
	keys := make([]K, 0, len(rows))
	for k := range rows {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b K) int { return cmp.Or(cmp.Compare(seen(rows[a]), seen(rows[b])), cmp.Compare(a, b)) })
	return keys[:len(keys)-limit*9/10]
}
