package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/terraphim/tgr"
)

// maxWaiting is how many may wait for one group.
// https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#concurrency
const maxWaiting = 100

// entry is a run (job 0), or one job of it, that comes to a concurrency group.
type entry struct {
	run   tgr.RunID
	job   tgr.JobID
	group tgr.Group
}

// member is an entry that is in its group: it waits, or holds it.
type member struct {
	entry
	waiting bool
}

// groupKey is a group's name within its namespace. Forks have one of their own: theirs cannot name a group that
// cancels, or holds up, what is trusted.
func groupKey(e tgr.Event, g tgr.Group) string {
	trust := "own"
	if e.Forked {
		trust = "fork"
	}
	return fmt.Sprintf("%d/%s/%s", e.Repo.ID, trust, strings.ToLower(g.Name))
}

// enter has a run or a job wait for its group. Whether it is its turn is seen when the operation has done the rest.
func (t *tx) enter(run tgr.RunID, job tgr.JobID, g tgr.Group) {
	if g.Name != "" {
		t.entries = append(t.entries, entry{run, job, g})
	}
}

// enterRun has a run enter its group, once nobody has to approve it any more: what a stranger proposes neither holds up nor
// cancels what was let go on.
func (t *tx) enterRun(run tgr.Run) {
	if run.Hold == "" {
		t.enter(run.ID, 0, run.Group)
	}
}

// enterJobs has the jobs of a run's current attempt that were expanded before enter their groups.
func (t *tx) enterJobs(run tgr.Run) error {
	jobs, err := work(context.Background(), t, run.ID, run.Attempt)
	for _, j := range jobs {
		if j.Status == tgr.Pending && !j.Gated {
			t.enter(run.ID, j.ID, j.Group)
		}
	}
	return err
}

// leave ends a completed run's or job's part in its group.
func (t *tx) leave(run tgr.RunID, job tgr.JobID) error {
	var key string
	err := t.QueryRow("DELETE FROM members WHERE run_id = $1 AND job_id = $2 RETURNING grp", run, job).Scan(&key)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // it never came to it
	}
	if err != nil {
		return fmt.Errorf("leave the group of run %d, job %d: %w", run, job, err)
	}
	t.left = append(t.left, key)
	return nil
}

// waits reports whether a run waits for its group.
func (t *tx) waits(run tgr.Run) (bool, error) {
	if run.Group.Name == "" {
		return false, nil
	}
	var waits bool
	err := t.QueryRow("SELECT COUNT(*) FROM members WHERE run_id = $1 AND job_id = 0 AND waiting = 1", run.ID).Scan(&waits)
	return waits, err
}

// regroup ends every operation: groups that were left go to who is next, and then who came is admitted, one by one in
// the order in which they came. Both may make others leave.
func (t *tx) regroup() error {
	for len(t.left)+len(t.entries) > 0 {
		if len(t.left) > 0 {
			key := t.left[0]
			t.left = t.left[1:]
			if err := t.admit(key); err != nil {
				return err
			}
			continue
		}
		e := t.entries[0]
		t.entries = t.entries[1:]
		if err := t.join(e); err != nil {
			return err
		}
	}
	return nil
}

// join adds an entry to its group. A job in the group of its own run would wait for ever.
func (t *tx) join(e entry) error {
	run, err := findRun(context.Background(), t, e.run, false)
	if err != nil || run.Status.Done() {
		return err
	}
	if e.job != 0 {
		if j, err := findJob(context.Background(), t, e.job); err != nil || j.Status.Done() {
			return err // who came before has had it cancelled
		}
	}
	if e.job != 0 && run.Group.Name != "" && groupKey(run.Event, run.Group) == groupKey(run.Event, e.group) {
		return t.evict(member{entry: e}, fmt.Sprintf("the job would wait for its own run, which holds the concurrency group %q", e.group.Name))
	}
	key := groupKey(run.Event, e.group)
	if caller, err := t.callerIn(key, e); err != nil {
		return err
	} else if caller != "" {
		return t.evict(member{entry: e}, fmt.Sprintf("the job would wait for %s, which calls it and is in the concurrency group %q", caller, e.group.Name))
	}
	spec, err := json.Marshal(e.group)
	if err != nil {
		return err
	}
	if _, err := t.Exec("INSERT INTO members (grp, run_id, job_id, waiting, spec) VALUES ($1, $2, $3, 1, $4)", key, e.run, e.job, string(spec)); err != nil {
		return fmt.Errorf("enter the concurrency group %q: %w", e.group.Name, err)
	}
	return t.admit(key)
}

// callerIn is the name of a job that is in a group and calls the entry's, directly or not; "" if there is none.
func (t *tx) callerIn(key string, e entry) (string, error) {
	if e.job == 0 {
		return "", nil
	}
	j, err := findJob(context.Background(), t, e.job)
	if err != nil || !strings.Contains(j.Key, "/") {
		return "", err
	}
	callers, err := findJobs(context.Background(), t, "WHERE kind = $1 AND id IN (SELECT job_id FROM members WHERE grp = $2 AND run_id = $3)", tgr.CallJob, key, e.run)
	for _, c := range callers {
		if strings.HasPrefix(j.Key, c.callPath()) {
			return c.Name, err
		}
	}
	return "", err
}

// admit makes a group what its rules say: one holds it, or is to be cancelled for one that waits; of those who wait
// the latest has sent away who waited before, unless it queues behind them.
func (t *tx) admit(key string) error {
	members, err := t.members(key)
	if err != nil {
		return err
	}
	holder := slices.IndexFunc(members, func(m member) bool { return !m.waiting })
	var held *member
	if holder >= 0 {
		held = &members[holder]
		members = slices.Delete(slices.Clone(members), holder, holder+1)
	}
	for i := len(members) - 1; i > 0; i-- {
		if members[i].group.QueueMax {
			continue
		}
		for _, m := range members[:i] {
			if err := t.evict(m, fmt.Sprintf("%s came to the concurrency group %q later, and waits in its place", members[i].who(), m.group.Name)); err != nil {
				return err
			}
		}
		members = members[i:]
		break
	}
	if held == nil && len(members) > 0 {
		held = &members[0]
		if err := t.promote(*held); err != nil {
			return err
		}
		members = members[1:]
	}
	for i, m := range members {
		switch {
		case i >= maxWaiting:
			err = t.evict(m, fmt.Sprintf("%d wait for the concurrency group %q already", maxWaiting, m.group.Name))
		case m.group.CancelOther:
			err = cmp.Or(t.supersede(*held, m), t.wait(m, *held))
		default:
			err = t.wait(m, *held)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// members lists who is in a group, in the order in which they came.
func (t *tx) members(key string) ([]member, error) {
	rows, err := t.Query("SELECT run_id, job_id, waiting, spec FROM members WHERE grp = $1 ORDER BY seq", key)
	if err != nil {
		return nil, fmt.Errorf("read the concurrency group %q: %w", key, err)
	}
	defer rows.Close()
	var out []member
	for rows.Next() {
		var m member
		var spec string
		if err := rows.Scan(&m.run, &m.job, &m.waiting, &spec); err != nil {
			return nil, err
		}
		if err := decode("concurrency group", spec, &m.group); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, rows.Err()
}

// who names a run or a job in reasons.
func (e entry) who() string {
	if e.job != 0 {
		return fmt.Sprintf("job %d of run %d", e.job, e.run)
	}
	return fmt.Sprintf("run %d", e.run)
}

// promote gives the group to one that waits for it.
func (t *tx) promote(m member) error {
	if err := t.exec(m.who()+" holds its group", "UPDATE members SET waiting = 0 WHERE run_id = $1 AND job_id = $2", m.run, m.job); err != nil {
		return err
	}
	t.nudged[m.run] = true
	if m.job != 0 {
		return t.alter(m, func(j *job) error { return j.enqueue(t.now, "") })
	}
	run, err := findRun(context.Background(), t, m.run, false)
	if err != nil {
		return err
	}
	run.Reason = ""
	if err := t.saveRun(&run); err != nil {
		return err
	}
	// Those that a re-run has queued, or gated, waited for the group until now.
	if _, err := t.Exec("UPDATE jobs SET queued = $1 WHERE run_id = $2 AND attempt = $3 AND queued > 0 AND status <> 'completed'", nanos(t.now), run.ID, run.Attempt); err != nil {
		return err
	}
	if err := t.enterJobs(run); err != nil {
		return err
	}
	return t.fold(m.run)
}

// wait writes down who holds the group that m waits for.
func (t *tx) wait(m, holder member) error {
	reason := fmt.Sprintf("waits for the concurrency group %q, which %s holds", m.group.Name, holder.who())
	if m.job != 0 {
		return t.alter(m, func(j *job) error { j.Reason = reason; return nil })
	}
	run, err := findRun(context.Background(), t, m.run, false)
	if err != nil || run.Reason == reason {
		return err
	}
	run.Reason = reason
	if err := t.saveRun(&run); err != nil {
		return err
	}
	return t.fold(m.run)
}

// alter changes the job of a member, unless it has been completed by what was done to another one.
func (t *tx) alter(m member, fn func(*job) error) error {
	j, err := findJob(context.Background(), t, m.job)
	if err != nil || j.Status.Done() {
		return err
	}
	was := *j
	if err := fn(j); err != nil {
		return err
	}
	if was.Status == j.Status && was.Reason == j.Reason && was.cancel == j.cancel {
		return nil
	}
	if err := t.save(j, was.Status); err != nil {
		return err
	}
	return t.fold(m.run)
}

// evict cancels one that waits: nothing of it has run.
func (t *tx) evict(m member, why string) error {
	t.nudged[m.run] = true
	if m.job != 0 {
		return t.alter(m, func(j *job) error { return j.stop(t.now, why) })
	}
	run, err := findRun(context.Background(), t, m.run, false)
	if err != nil {
		return err
	}
	return t.cancelAll(run, why)
}

// supersede cancels the holder for one that wants its place; once is enough.
func (t *tx) supersede(holder, by member) error {
	why := fmt.Sprintf("superseded by %s in the concurrency group %q", by.who(), by.group.Name)
	t.nudged[holder.run] = true
	if holder.job != 0 {
		j, err := findJob(context.Background(), t, holder.job)
		if err != nil || j.Status.Done() || j.cancel {
			return err
		}
		if err := t.stop(j, why); err != nil {
			return err
		}
		return t.fold(holder.run)
	}
	run, err := findRun(context.Background(), t, holder.run, false)
	if err != nil || run.CancelReason != "" {
		return err
	}
	run.CancelReason = why
	return t.saveRun(&run)
}
