package main

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/web"
)

// setSchedules says when the schedules that the server knows are due, while it is stopped, and returns how many there are.
func (s *site) setSchedules(next time.Time) int64 {
	s.t.Helper()
	res, err := s.database().Exec("UPDATE schedules SET next = ?", next.UnixNano())
	if err != nil {
		s.t.Fatal(err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *site) database() *sql.DB {
	s.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(s.data, "data", "tgr.db")+"?_pragma=busy_timeout(5000)")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { db.Close() })
	return db
}

// runsOf waits until n runs of an event are completed, and returns them, the latest first.
func (s *site) runsOf(event string, n int) []web.RunDetail {
	s.t.Helper()
	out := s.doneOf(fmt.Sprintf("%d runs of %s", n, event), web.Filter{Event: event}, n)
	if len(out) != n {
		s.t.Errorf("%d runs of %s, want %d", len(out), event, n)
	}
	return out
}

// A workflow is started at its time, without a webhook, once, on the latest commit of the default branch.
func TestServeSchedule(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/nightly", map[string]string{
		workflowDir + "/ci.yml":     trivialWorkflow,
		workflowDir + "/broken.yml": "on: {schedule: [{cron: '0 4 * * *'}]}\njobs: {a: {runs-on: linux, steps: [{run: 'true', unknown: 1}]}}\n",
		workflowDir + "/nightly.yml": `name: Nightly
on:
  schedule: [{cron: '0 4 * * *'}, {cron: '0 5 * * *', timezone: Europe/Berlin}]
jobs:
  a:
    runs-on: linux
    steps:
      - run: |
          echo "${{ github.event_name }} of ${{ github.repository }} at '${{ github.event.schedule }}', by ${{ github.actor }}"
          echo "${{ github.event.repository.html_url }} ${{ github.ref }} ${{ github.sha }}"
`})
	s.completed(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))))
	if list := s.tgr(newRunsCmd(), "", "schedules", "-R", "Acme/nightly"); strings.Count(list, "acme/nightly") != 2 || !strings.Contains(list, "Europe/Berlin") || !strings.Contains(list, "0 4 * * *") {
		t.Errorf("tgr runs schedules:\n%s", list)
	}
	if list := s.tgr(newRunsCmd(), "", "schedules", "-R", "acme/other"); list != "nothing is scheduled\n" {
		t.Errorf("of another repository: %s", list)
	}
	s.stop()
	if n := s.setSchedules(time.Now().Add(-time.Minute)); n != 2 {
		t.Fatalf("%d schedules are known, want those of one file", n)
	}
	if _, err := repo.Commit("main", "second", map[string]string{"README.md": "a webhook of it has not come yet"}); err != nil {
		t.Fatal(err)
	}
	s.start()
	runs := s.runsOf("schedule", 2)
	for i, cron := range []string{"0 5 * * *", "0 4 * * *"} {
		r := runs[i]
		if r.Conclusion != tgr.Success || r.WorkflowName != "Nightly" || r.Event.SHA != repo.SHA("main") {
			t.Errorf("run %d: %s %s at %s, %s; want a success of the second commit", r.ID, r.WorkflowName, r.Conclusion, r.Event.SHA, r.Reason)
		}
		log := s.logOf(r)
		for _, want := range []string{"schedule of acme/nightly at '" + cron + "', by ada", s.hub.URL + "/acme/nightly refs/heads/main " + repo.SHA("main")} {
			if !strings.Contains(log, want) {
				t.Errorf("the log of run %d lacks %q:\n%s", r.ID, want, log)
			}
		}
	}
	if list := s.tgr(newRunsCmd(), "", "list"); strings.Count(list, " schedule ") != 2 {
		t.Errorf("tgr runs list:\n%s", list)
	}

	// Both are due at their next times, and not again at the next start.
	s.stop()
	s.start()
	s.completed(s.push(repo, map[string]string{"a.txt": "a"}))
	s.runsOf("schedule", 2)

	// What is due stays so with a server that does not start it.
	s.stop()
	s.setSchedules(time.Now().Add(-time.Minute))
	s.env = append(s.env, "TGR_SCHEDULES=false")
	s.start()
	s.completed(s.push(repo, map[string]string{"b.txt": "b"}))
	s.runsOf("schedule", 2)
	var past int
	if err := s.database().QueryRow("SELECT COUNT(*) FROM schedules WHERE next < ?", time.Now().UnixNano()).Scan(&past); err != nil || past != 2 {
		t.Errorf("%d schedules are due, %v; want 2", past, err)
	}
	s.completed(s.push(repo, map[string]string{workflowDir + "/nightly.yml": trivialWorkflow}))
	if err := s.database().QueryRow("SELECT COUNT(*) FROM schedules").Scan(&past); err != nil || past != 0 {
		t.Errorf("%d schedules are known of workflows without one, %v", past, err)
	}
}
