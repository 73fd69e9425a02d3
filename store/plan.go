package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/terraphim/tgr"
)

// Planned is what planning a delivery yielded.
type Planned struct {
	Runs    []PlannedRun
	Event   *tgr.Event // what the source has found out, such as the SHA of a branch; nil: nothing new
	Reason  string     // why nothing runs, where Runs is empty
	Reports []Outgoing // for the outbox
	// Awaited is what the workflows of the default branch wait for, where the event is of its latest commit; nil: it is not.
	Awaited *tgr.Awaited
}

// PlannedRun is one workflow that runs, or that should have run and could not be compiled.
type PlannedRun struct {
	Event        *tgr.Event // of the run, where it is not its delivery's; the payload is the delivery's in any case
	WorkflowFile string     // required
	WorkflowName string
	Title        string
	Plan         []byte // workflow.Plan as JSON
	Group        tgr.Group
	Jobs         []tgr.Job // Key, Kind, Name, Needs and Uses are used; each starts pending. Keys are distinct
	Hold         string    // as of tgr.Run

	// Conclusion, if not empty, completes the run at once, without jobs: StartupFailure for a workflow that could
	// not be compiled, Skipped for one that has nothing to do.
	Conclusion tgr.Conclusion
	Reason     string
}

// validate refuses what could never end: a run without jobs, a need that is not there.
func (p PlannedRun) validate() error {
	refuse := func(format string, args ...any) error {
		return tgr.Errorf("store.planned", tgr.Invalid, "workflow %q: "+format, append([]any{p.WorkflowFile}, args...)...)
	}
	if p.WorkflowFile == "" {
		return refuse("has no file")
	}
	if (p.Conclusion == "") == (len(p.Jobs) == 0) {
		return refuse("needs either jobs or a conclusion")
	}
	keys := make(map[string]bool, len(p.Jobs))
	for _, j := range p.Jobs {
		if j.Key == "" || keys[j.Key] {
			return refuse("the key %q of a job is empty or taken", j.Key)
		}
		keys[j.Key] = true
	}
	for _, j := range p.Jobs {
		for _, n := range j.Needs {
			if !keys[n] {
				return refuse("job %q needs %q, which is not a job", j.Key, n)
			}
		}
	}
	return nil
}

// Planned completes the plan job and makes its run real, in one transaction. The first of p.Runs takes over the
// run that Accept made, the others become new runs of the same delivery; their ids are returned in that order.
// Each gets the next number of its workflow file in its repository. Without any, the run is completed as skipped
// with p.Reason. An error of [tgr.Conflict] means that token is no longer the plan job's, or that the run is to be
// cancelled: nothing was written.
func (s *Store) Planned(ctx context.Context, id tgr.JobID, token string, p Planned) ([]tgr.RunID, error) {
	for _, r := range p.Runs {
		if err := r.validate(); err != nil {
			return nil, err
		}
	}
	var ids []tgr.RunID
	err := s.change(ctx, "planned", id, token, func(t *tx, j *job) error {
		if j.Kind != tgr.PlanJob {
			return tgr.Errorf("store.planned", tgr.Invalid, "job %d does not plan", id)
		}
		if j.cancel {
			return tgr.Errorf("store.planned", tgr.Conflict, "run %d is to be cancelled: %s", j.Run, j.cancelReason)
		}
		var err error
		if ids, err = t.planned(j.Run, p); err != nil {
			return err
		}
		if err := j.complete(t.now, tgr.Success, "", ""); err != nil {
			return err
		}
		return t.enqueue(p.Reports)
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

// planned stores what p says of the accepted run.
func (t *tx) planned(accepted tgr.RunID, p Planned) ([]tgr.RunID, error) {
	base, err := findRun(context.Background(), t, accepted, false)
	if err != nil {
		return nil, err
	}
	if p.Event != nil {
		event, err := json.Marshal(p.Event)
		if err != nil {
			return nil, err
		}
		if err := t.exec(fmt.Sprintf("event of run %d", accepted), "UPDATE deliveries SET event = $1 WHERE id = $2", string(event), base.Delivery); err != nil {
			return nil, err
		}
		base.Event = *p.Event
	}
	if p.Awaited != nil {
		if err := t.await(base, *p.Awaited); err != nil {
			return nil, err
		}
	}
	if len(p.Runs) == 0 {
		base.Status, base.Conclusion, base.Reason = tgr.Completed, tgr.Skipped, p.Reason
		if err := t.saveRun(&base); err != nil {
			return nil, err
		}
		return []tgr.RunID{}, t.notify(base, nil)
	}
	ids := make([]tgr.RunID, len(p.Runs))
	for i, r := range p.Runs {
		run := base
		if r.Event != nil {
			run.Event = *r.Event
		}
		if i > 0 {
			run.Attempt, run.Created = 1, t.now
			if err := t.insertRun(&run); err != nil {
				return nil, err
			}
		}
		if r.Event != nil {
			if err := t.saveEvent(run); err != nil {
				return nil, err
			}
		}
		if err := t.plan(&run, r); err != nil {
			return nil, err
		}
		ids[i] = run.ID
	}
	return ids, nil
}

// pendingJob is a job of run's current attempt before anything is known of it.
func pendingJob(run tgr.Run, j tgr.Job, now time.Time) *job {
	return &job{template: j.Name, Job: tgr.Job{
		Run: run.ID, Attempt: run.Attempt, Kind: cmp.Or(j.Kind, tgr.WorkJob), Key: j.Key, Name: j.Name, Needs: j.Needs, Uses: j.Uses,
		Total: 1, Status: tgr.Pending, Created: now,
	}}
}

// plan makes run, which has a row, a run of the workflow p.
func (t *tx) plan(run *tgr.Run, p PlannedRun) error {
	err := t.QueryRow(`INSERT INTO run_numbers (repo_id, workflow_file, n) VALUES ($1, $2, 1)
		ON CONFLICT (repo_id, workflow_file) DO UPDATE SET n = run_numbers.n + 1 RETURNING n`, run.Event.Repo.ID, p.WorkflowFile).Scan(&run.Number)
	if err != nil {
		return fmt.Errorf("number run %d: %w", run.ID, err)
	}
	run.WorkflowFile, run.WorkflowName, run.Title, run.Group, run.Hold = p.WorkflowFile, p.WorkflowName, p.Title, p.Group, p.Hold
	group, err := encode(run.Group, len(run.Group.Name))
	if err != nil {
		return err
	}
	err = t.exec(fmt.Sprintf("plan run %d", run.ID), "UPDATE runs SET number = $1, workflow_file = $2, workflow_name = $3, title = $4, plan = $5, grp = $6, hold = $7 WHERE id = $8",
		run.Number, p.WorkflowFile, p.WorkflowName, p.Title, p.Plan, group, run.Hold, run.ID)
	if err != nil {
		return err
	}
	if run.Hold == "" { // else nothing happens until it is approved
		if err := t.follow(run, "requested"); err != nil {
			return err
		}
	}
	if p.Conclusion != "" {
		run.Status, run.Conclusion, run.Reason = tgr.Completed, p.Conclusion, p.Reason
		if err := t.saveRun(run); err != nil {
			return err
		}
		return t.notify(*run, nil)
	}
	for _, j := range p.Jobs {
		if err := t.insert(pendingJob(*run, j, t.now)); err != nil {
			return err
		}
	}
	t.enterRun(*run)
	return t.fold(run.ID)
}
