package learn

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/terraphim/tgr"
)

// Trace is a made-up history of one repository whose truth is known. What is measured on it says how well the learner does
// where the world is as the trace, and no more.
type Trace struct {
	Records []Record
	Flaky   map[string]bool // step keys that fail by chance
	Slower  map[string]bool // step keys that became slower, and stayed so
	Cause   map[int64]int   // by seq of a failed job: why it failed
}

// TraceConfig is what a trace is made of.
type TraceConfig struct {
	Seed    uint64
	Commits int     // on main and on branches, in turn
	Jobs    int     // of the workflow
	Lines   int     // of noise in the log of a step
	Forked  float64 // share of hostile pull requests of forks among what runs
}

// tracer makes a trace.
type tracer struct {
	TraceConfig
	*rand.Rand
	trace  Trace
	jobs   []tracedJob
	seq    int64
	now    time.Time
	broken map[string]int // branch and job: cause of a breakage that nobody has mended
}

// tracedJob is the truth about a job: its steps are checkout, install and test.
type tracedJob struct {
	flake   float64    // chance that its test fails by itself
	flakeBy int        // cause
	base    [3]float64 // median milliseconds of the steps
	spread  float64    // of their logarithm
	drift   float64    // factor from the middle of the trace on
}

const causesOfJob = 4

// NewTrace makes a trace; the same configuration makes the same.
func NewTrace(c TraceConfig) Trace {
	t := &tracer{TraceConfig: c, Rand: rand.New(rand.NewPCG(c.Seed, 1)), now: time.Unix(1_700_000_000, 0), broken: map[string]int{},
		trace: Trace{Flaky: map[string]bool{}, Slower: map[string]bool{}, Cause: map[int64]int{}}}
	rates := []float64{0, 0, 0, 0.05, 0, 0.1, 0, 0.2, 0, 0.35}
	for i := range c.Jobs {
		j := tracedJob{flake: rates[i%len(rates)], flakeBy: i*causesOfJob + causesOfJob - 1, spread: 0.05 + 0.2*t.Float64(), drift: 1,
			base: [3]float64{800 + 400*t.Float64(), 5000 + 40_000*t.Float64(), 10_000 + 200_000*t.Float64()}}
		test := keyOf("ci.yml", jobName(i), "test")
		t.trace.Flaky[test] = j.flake > 0
		if i%5 == 1 {
			j.drift = 1.4 + 0.6*t.Float64()
			t.trace.Slower[test] = true
		}
		t.jobs = append(t.jobs, j)
	}
	for i := range c.Commits {
		t.commit(i)
	}
	return t.trace
}

func jobName(i int) string { return fmt.Sprintf("job%d", i) }

// commit runs all jobs of a commit, and again those that failed, half of the time.
func (t *tracer) commit(i int) {
	branch, forked := "refs/heads/main", false
	switch {
	case t.Float64() < t.Forked:
		branch, forked = fmt.Sprintf("fork%d", t.IntN(3)), true
	case t.IntN(2) == 0:
		branch = fmt.Sprintf("feature%d", t.IntN(6))
	}
	sha := fmt.Sprintf("%040x", t.Uint64())
	outage := t.Float64() < 1.0/400 // of a registry: every install fails, for nobody's fault here
	run := int64(i + 1)
	for j := range t.jobs {
		at := branch + jobName(j)
		if cause, ok := t.broken[at]; ok && t.Float64() < 0.5 {
			delete(t.broken, at)
			_ = cause
		} else if !ok && t.Float64() < 0.02 {
			t.broken[at] = j*causesOfJob + t.IntN(causesOfJob-1)
		}
		for range 3 {
			failed := t.job(run, j, branch, sha, forked, outage, i > t.Commits/2)
			if !failed || t.Float64() < 0.5 {
				break
			}
			outage = false
		}
	}
}

// job adds the record of one job.
func (t *tracer) job(run int64, n int, branch, sha string, forked, outage, late bool) (failed bool) {
	j := t.jobs[n]
	cause, ok := t.broken[branch+jobName(n)]
	if !ok {
		cause = -1
		if t.Float64() < j.flake {
			cause = j.flakeBy
		}
	}
	t.seq++
	r := Record{Seq: t.seq, Run: tgr.Run{ID: tgr.RunID(run), WorkflowFile: "ci.yml", Event: tgr.Event{Name: "push", Ref: branch, SHA: sha, Forked: forked,
		Repo: tgr.Repo{ID: 7, FullName: "octo/app"}}},
		Commands: map[int]Command{1: {Uses: "actions/checkout@v4"}, 2: {Run: "npm ci"}, 3: {Run: "npm test"}}}
	r.Job = tgr.Job{ID: tgr.JobID(t.seq), Run: r.Run.ID, Attempt: 1, Kind: tgr.WorkJob, Key: jobName(n), Total: 1, Status: tgr.Completed, Conclusion: tgr.Success, Started: t.now}
	if forked { // a stranger who wants the learner to call everything broken
		cause = n * causesOfJob
	}
	for i, name := range []string{"checkout", "install", "test"} {
		ms := j.base[i] * math.Exp(j.spread*t.NormFloat64())
		if i == 2 && late {
			ms *= j.drift
		}
		if t.Float64() < 1.0/200 {
			ms *= 1 + 1.5*t.Float64() // a busy host
		}
		st := tgr.Step{Number: i + 1, ID: name, Name: name, Status: tgr.Completed, Conclusion: tgr.Success, Started: t.now}
		t.noise(&r, i+1)
		if i == 1 && outage {
			failed = true
			r.Log = append(r.Log, tgr.LogLine{Step: 2, Text: "npm ERR! network request to https://registry.example failed, reason: connect ECONNREFUSED"})
		} else if i == 2 && cause >= 0 {
			failed = true
			t.complain(&r, cause)
			t.trace.Cause[r.Seq] = cause
		}
		t.now = t.now.Add(time.Duration(ms) * time.Millisecond)
		st.Finished = t.now
		st.MemoryMiB, st.CPU = 200*int64(i+1)+(r.Seq*31)%97, time.Duration(0.8*ms)*time.Millisecond
		if failed {
			one := 1
			st.Conclusion, st.ExitCode, r.Job.Conclusion = tgr.Failure, &one, tgr.Failure
		}
		r.Job.Steps = append(r.Job.Steps, st)
		if failed {
			break
		}
	}
	r.Job.Finished = t.now
	t.trace.Records = append(t.trace.Records, r)
	return failed
}

// noise is what a step prints whatever happens, some of it alarming.
func (t *tracer) noise(r *Record, step int) {
	for i := range t.Lines {
		var text string
		switch i % 4 {
		case 0:
			text = fmt.Sprintf("%s added %d packages in %d.%ds", time.Unix(r.Seq, 0).UTC().Format(time.RFC3339), t.IntN(900), t.IntN(60), t.IntN(10))
		case 1:
			text = fmt.Sprintf("npm warn deprecated error-handler@%d.%d.0: use /tmp/build-%x/other instead", t.IntN(9), t.IntN(9), t.Uint32())
		case 2:
			text = fmt.Sprintf("ok %d - module %s does what it should (%dms)", t.IntN(999), []string{"alpha", "beta", "gamma"}[t.IntN(3)], t.IntN(5000))
		case 3:
			text = fmt.Sprintf("0 errors, %d warnings", t.IntN(20))
		}
		r.Log = append(r.Log, tgr.LogLine{Step: step, Text: text})
	}
}

// complain prints what a cause prints: the same words each time, with other numbers, folders and hashes.
func (t *tracer) complain(r *Record, cause int) {
	noun := []string{"socket", "ledger", "parser", "invoice", "cursor", "palette", "session", "matrix", "anchor", "voucher", "gadget", "kernel"}[cause%12]
	verb := []string{"closed", "overflowed", "vanished", "diverged", "stalled"}[cause/12%5]
	line := [][]string{
		{"AssertionError: expected the %s to have %s", "    at Object.<anonymous> (/home/runner/w%x/test/%s.js:%d:%d)"},
		{"TypeError: cannot read properties of the %s which %s", "    at load (/tmp/%x/src/%s/index.js:%d:%d)"},
		{"fatal: %s was not expected to be %s", "goroutine of %x in /src/%s.go:%d +0x%x"},
		{"Timeout: the %s %s after waiting", "  - worker %x gave up on %s after %d.%d s"},
	}[cause%4]
	text := []string{fmt.Sprintf("✕ suite %d of %d: case %q failed (%d ms)", t.IntN(50), 50, noun+" "+verb, t.IntN(9000)),
		fmt.Sprintf("%s Error %s", time.Unix(r.Seq*7, 0).UTC().Format("15:04:05.000"), fmt.Sprintf(line[0], noun, verb)),
		fmt.Sprintf(line[1], t.Uint64(), noun, t.IntN(900), t.IntN(90)), fmt.Sprintf("Tests: 1 failed, %d passed", t.IntN(300))}
	for _, s := range text {
		r.Log = append(r.Log, tgr.LogLine{Step: 3, Text: s})
	}
}
