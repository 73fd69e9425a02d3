package dispatch

import (
	"fmt"
	"slices"
	"strings"

	"github.com/terraphim/tgr"
)

// regroup gives each concurrency group of jobs to who came first, and has the others wait or go, as the store does.
// All runs in a Memory are of one repository and of one person's command, so that a group's name is all there is to it.
func (m *Memory) regroup() {
	for again := true; again; {
		again = false
		for _, j := range slices.Clone(m.jobs) {
			if j.Group.Name != "" && j.Status == tgr.Queued && j.turn == 0 && !j.Gated {
				m.enter(j)
				again = true // it may have sent others away
			}
		}
	}
	for _, j := range m.jobs {
		if j.turn > 0 && j.Status == tgr.Pending && m.holder(j) == nil {
			j.Status, j.Reason = tgr.Queued, ""
			m.nudge(j.Run)
		}
	}
}

// enter has a job come to its group: it is its turn, or it waits in the place of who waited before.
func (m *Memory) enter(j *memoryJob) {
	m.turns++
	j.turn = m.turns
	holder := m.holder(j)
	switch {
	case holder == nil:
		return
	case holder.Run == j.Run && holder.Kind == tgr.CallJob && strings.HasPrefix(j.Key, callPath(holder.Job)):
		m.sendAway(j, fmt.Sprintf("the job would wait for %s, which calls it and is in the concurrency group %q", holder.Name, j.Group.Name))
		return
	}
	j.Status, j.Reason = tgr.Pending, fmt.Sprintf("waits for the concurrency group %q, which %s holds", j.Group.Name, holder.Name)
	for _, o := range m.jobs {
		if !j.Group.QueueMax && o != holder && o.ahead(j) {
			m.sendAway(o, fmt.Sprintf("%s came to the concurrency group %q later, and waits in its place", j.Name, j.Group.Name))
		}
	}
	if !j.Group.CancelOther {
		return
	}
	why := fmt.Sprintf("superseded by %s in the concurrency group %q", j.Name, j.Group.Name)
	if holder.Status == tgr.InProgress && holder.Kind != tgr.CallJob {
		holder.cancel = why
		return
	}
	m.sendAway(holder, why)
}

// holder is the job that is in j's group and came to it first, before j; nil if that is j.
func (m *Memory) holder(j *memoryJob) *memoryJob {
	var first *memoryJob
	for _, o := range m.jobs {
		if o.ahead(j) && (first == nil || o.turn < first.turn) {
			first = o
		}
	}
	return first
}

// ahead reports whether j is in o's group, came to it before o, and has not ended.
func (j *memoryJob) ahead(o *memoryJob) bool {
	return j.turn > 0 && j.turn < o.turn && !j.Status.Done() && strings.EqualFold(j.Group.Name, o.Group.Name)
}

// sendAway cancels a job that has not begun on a machine, and what it calls.
func (m *Memory) sendAway(j *memoryJob, why string) {
	for _, o := range m.jobs {
		if j.Kind != tgr.CallJob || o.Run != j.Run || o.Status.Done() || !strings.HasPrefix(o.Key, callPath(j.Job)) {
			continue
		}
		if o.Status == tgr.InProgress && o.Kind == tgr.WorkJob {
			o.cancel = why
		} else {
			o.complete(JobResult{Conclusion: tgr.Cancelled, Reason: why})
		}
	}
	if j.Kind != tgr.CallJob || j.Status != tgr.InProgress { // a call ends when what it calls has ended
		j.complete(JobResult{Conclusion: tgr.Cancelled, Reason: why})
	}
	m.nudge(j.Run)
}

func (m *Memory) nudge(id tgr.RunID) {
	if !slices.Contains(m.nudged, id) {
		m.nudged = append(m.nudged, id)
	}
}

// Nudged implements Runs.
func (m *Memory) Nudged() []tgr.RunID {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids := m.nudged
	m.nudged = nil
	return ids
}
