package dispatch

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/terraphim/tgr"
)

// Memory keeps runs and jobs in memory, for `tgr run`: what the store promises, but for surviving the process and for
// concurrency groups of whole runs, which nobody means who runs workflows by hand: those of jobs it keeps.
// Its zero value is ready; it is safe for concurrent use.
type Memory struct {
	mu   sync.Mutex
	runs []*tgr.Run
	jobs []*memoryJob

	turns  int         // how many jobs came to a concurrency group
	nudged []tgr.RunID // to be settled, because of a group
}

type memoryJob struct {
	tgr.Job
	token  string
	owner  string
	until  time.Time
	cancel string
	turn   int // in the order in which jobs came to their concurrency groups; 0: it has not
}

// Accept makes an unplanned run of an event, with its plan job.
func (m *Memory) Accept(ev tgr.Event) tgr.RunID {
	m.mu.Lock()
	defer m.mu.Unlock()
	run := m.newRun(ev)
	m.newJob(tgr.Job{Run: run.ID, Attempt: 1, Kind: tgr.PlanJob, Key: "plan", Name: "plan", Status: tgr.Queued})
	return run.ID
}

// All returns the runs with their jobs, oldest first.
func (m *Memory) All() ([]tgr.Run, map[tgr.RunID][]tgr.Job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var runs []tgr.Run
	jobs := map[tgr.RunID][]tgr.Job{}
	for _, r := range m.runs {
		runs = append(runs, *r)
		jobs[r.ID] = m.jobsOf(r.ID)
	}
	return runs, jobs
}

// Cancel asks for the cancellation of every run that has not ended.
func (m *Memory) Cancel(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.runs {
		if !r.Status.Done() && r.CancelReason == "" {
			r.CancelReason = reason
		}
	}
}

// Claim implements Jobs.
func (m *Memory) Claim(_ context.Context, c Claim) (*Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, j := range m.jobs {
		if j.Status != tgr.Queued || j.Kind == tgr.CallJob || len(c.Kinds) > 0 && !slices.Contains(c.Kinds, j.Kind) || m.full(j) {
			continue
		}
		now := time.Now()
		j.Status, j.Started, j.Tries = tgr.InProgress, now, j.Tries+1
		j.token, j.owner, j.until = tgr.NewToken(), c.Owner, now.Add(c.Lease)
		m.fold(j.Run)
		return &Lease{Job: j.Job, Run: *m.run(j.Run), Token: j.token, Until: j.until}, nil
	}
	return nil, ErrNothing
}

// full reports whether as many instances of j's matrix run as may.
func (m *Memory) full(j *memoryJob) bool {
	running := 0
	for _, o := range m.jobs {
		if o.Run == j.Run && o.Attempt == j.Attempt && o.Key == j.Key && o.Status == tgr.InProgress {
			running++
		}
	}
	return j.MaxParallel > 0 && running >= j.MaxParallel
}

// Beat implements Jobs.
func (m *Memory) Beat(_ context.Context, id tgr.JobID, token string, lease time.Duration) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	j, err := m.leased(id, token)
	if err != nil {
		return "", err
	}
	j.until = time.Now().Add(lease)
	return j.cancel, nil
}

// Progress implements Jobs.
func (m *Memory) Progress(_ context.Context, id tgr.JobID, token string, p Progress) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	j, err := m.leased(id, token)
	if err != nil {
		return err
	}
	if p.Steps != nil {
		j.Steps = slices.Clone(p.Steps)
	}
	if p.Machine != "" {
		j.Machine, j.Isolation = p.Machine, p.Isolation
	}
	return nil
}

// Finish implements Jobs.
func (m *Memory) Finish(_ context.Context, id tgr.JobID, token string, r JobResult) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	j, err := m.leased(id, token)
	if err != nil {
		return err
	}
	j.complete(r)
	m.fold(j.Run)
	return nil
}

// Release implements Jobs.
func (m *Memory) Release(_ context.Context, id tgr.JobID, token, reason string, excused bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	j, err := m.leased(id, token)
	if err != nil {
		return err
	}
	if excused {
		j.Excused++
	}
	if j.Tries-j.Excused >= maxTries {
		j.complete(JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameOurs, Reason: reason})
	} else {
		j.Status, j.Reason, j.token = tgr.Queued, reason, ""
	}
	m.fold(j.Run)
	return nil
}

// Planned implements Runs.
func (m *Memory) Planned(_ context.Context, id tgr.JobID, token string, p Planned) ([]tgr.RunID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	j, err := m.leased(id, token)
	if err != nil {
		return nil, err
	}
	first := m.run(j.Run)
	first.Event, first.Reason = p.Event, p.Reason
	var ids []tgr.RunID
	for i, pr := range p.Runs {
		run := first
		if i > 0 {
			run = m.newRun(p.Event)
		}
		if pr.Event != nil {
			run.Event = *pr.Event
		}
		run.WorkflowFile, run.WorkflowName, run.Title, run.Plan = pr.WorkflowFile, pr.WorkflowName, pr.Title, pr.Plan
		run.Conclusion, run.Reason = pr.Conclusion, pr.Reason
		for _, job := range pr.Jobs {
			job.Run, job.Attempt = run.ID, 1
			m.newJob(job)
		}
		ids = append(ids, run.ID)
	}
	conclusion := tgr.Success
	if len(p.Runs) == 0 {
		conclusion = tgr.Skipped
	}
	j.complete(JobResult{Conclusion: conclusion, Reason: p.Reason})
	for _, id := range ids {
		m.fold(id)
	}
	m.fold(first.ID)
	return ids, nil
}

// Settle implements Runs.
func (m *Memory) Settle(_ context.Context, id tgr.RunID, fn func(tgr.Run, []tgr.Job) (Change, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	run := m.run(id)
	if run == nil {
		return tgr.Errorf("run.settle", tgr.NotFound, "there is no run %d", id)
	}
	if run.Status.Done() {
		return nil
	}
	c, err := fn(*run, m.jobsOf(id))
	if err != nil {
		return err
	}
	m.apply(id, c)
	if run.CancelReason == "" {
		run.CancelReason = c.CancelRun
	}
	m.fold(id)
	return nil
}

func (m *Memory) apply(id tgr.RunID, c Change) {
	for _, j := range slices.Clone(m.jobs) {
		if j.Run != id || j.Status.Done() {
			continue
		}
		if rows, ok := c.Expand[j.ID]; ok {
			m.jobs = slices.DeleteFunc(m.jobs, func(o *memoryJob) bool { return o == j })
			for _, row := range rows {
				m.newJob(row)
			}
		}
		if _, ok := c.Queue[j.ID]; ok {
			j.Gated, j.Status = false, tgr.Queued
		}
		if reason, ok := c.Skip[j.ID]; ok {
			j.complete(JobResult{Conclusion: tgr.Skipped, Reason: reason})
		}
		if rows, ok := c.Begin[j.ID]; ok {
			j.Status, j.Started = tgr.InProgress, time.Now()
			for _, row := range rows {
				m.newJob(row)
			}
		}
		if r, ok := c.End[j.ID]; ok {
			j.complete(r)
		}
		if reason, ok := c.Cancel[j.ID]; ok && j.Status == tgr.InProgress {
			j.cancel = reason
		} else if ok {
			j.complete(JobResult{Conclusion: tgr.Cancelled, Reason: reason})
		}
	}
}

// Unsettled implements Runs.
func (m *Memory) Unsettled(context.Context) ([]tgr.RunID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []tgr.RunID
	for _, r := range m.runs {
		if !r.Status.Done() {
			ids = append(ids, r.ID)
		}
	}
	return ids, nil
}

// Expire implements Runs. A lease in memory is never left behind by another process.
func (m *Memory) Expire(context.Context, string, ...tgr.JobID) ([]tgr.Job, error) { return nil, nil }

func (m *Memory) newRun(ev tgr.Event) *tgr.Run {
	r := &tgr.Run{ID: tgr.RunID(len(m.runs) + 1), Number: 1, Attempt: 1, Event: ev, Status: tgr.Queued, Created: time.Now()}
	m.runs = append(m.runs, r)
	return r
}

func (m *Memory) newJob(j tgr.Job) {
	id := tgr.JobID(1)
	for _, o := range m.jobs {
		id = max(id, o.ID+1)
	}
	j.ID, j.Created = id, time.Now()
	m.jobs = append(m.jobs, &memoryJob{Job: j})
}

func (m *Memory) run(id tgr.RunID) *tgr.Run {
	if id < 1 || int(id) > len(m.runs) {
		return nil
	}
	return m.runs[id-1]
}

func (m *Memory) jobsOf(id tgr.RunID) []tgr.Job {
	var jobs []tgr.Job
	for _, j := range m.jobs {
		if j.Run == id {
			jobs = append(jobs, j.Job)
		}
	}
	return jobs
}

func (m *Memory) leased(id tgr.JobID, token string) (*memoryJob, error) {
	for _, j := range m.jobs {
		if j.ID == id && j.Status == tgr.InProgress && j.token == token {
			return j, nil
		}
	}
	return nil, tgr.Errorf("job.lease", tgr.Conflict, "job %d is not leased under this token", id)
}

// fold derives the state of a run from its jobs, as the root's Fold does. Every operation ends with it.
func (m *Memory) fold(id tgr.RunID) {
	m.regroup()
	r := m.run(id)
	if r.Conclusion == tgr.StartupFailure {
		r.Status, r.Finished = tgr.Completed, time.Now()
		return
	}
	status, conclusion := tgr.FoldJobs(m.jobsOf(id))
	if status != tgr.Queued && r.Started.IsZero() {
		r.Started = time.Now()
	}
	if status.Done() && !r.Status.Done() {
		r.Finished = time.Now()
	}
	r.Status, r.Conclusion = status, conclusion
}

func (j *memoryJob) complete(r JobResult) {
	j.Status, j.Conclusion, j.Blame, j.Reason = tgr.Completed, r.Conclusion, r.Blame, r.Reason
	j.Outputs, j.Annotations, j.Summary, j.Finished, j.token = r.Outputs, r.Annotations, r.Summary, time.Now(), ""
	if r.Steps != nil {
		j.Steps = r.Steps
	}
}

var (
	_ Jobs = (*Memory)(nil)
	_ Runs = (*Memory)(nil)
)
