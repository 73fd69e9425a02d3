package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/web"
)

// TestGoesOn kills a server under a job in a machine, ends the next one as a service manager does, and kills the
// third: the job goes on through all of it, its first try is its last, and its log has every line once.
func TestGoesOn(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no machines")
	}
	if memoryFolder() == "" {
		t.Skip("NOT TESTED: without /dev/shm jobs do not outlive their server")
	}
	t.Run("qemu", func(t *testing.T) { goesOn(t, "qemu") })
	t.Run("container", func(t *testing.T) {
		needContainers(t)
		t.Setenv("PATH", filepath.Dir(buildAgent(t))+":"+os.Getenv("PATH"))
		goesOn(t, "container")
	})
}

func goesOn(t *testing.T, isolation string) {
	s := openSite(t, "TGR_ISOLATION="+isolation)
	repo := s.repo("acme/on", map[string]string{workflowDir + "/ci.yml": `on: push
jobs:
  long:
    runs-on: linux
    outputs: {sum: "${{ steps.sum.outputs.all }}"}
    steps:
      - uses: actions/checkout@v4
      - run: |
          echo "before=yes" >> "$GITHUB_ENV"
          echo "::add-mask::hush-hush"
      - id: count
        run: |
          for i in $(seq 150); do echo "line $i hush-hush"; sleep 0.1; [ $i != 75 ] || echo "::set-output name=half::$i"; done
          echo "n=150" >> "$GITHUB_OUTPUT"
      - id: sum
        run: |
          echo "half ${{ steps.count.outputs.half }} n ${{ steps.count.outputs.n }} before $before hush-hush"
          test -f .github/workflows/ci.yml
          echo "all=${{ steps.count.outputs.half }}+${{ steps.count.outputs.n }}" >> "$GITHUB_OUTPUT"
  after:
    needs: long
    runs-on: linux
    steps: [{run: 'echo "got ${{ needs.long.outputs.sum }}"'}]
`})
	id := s.push(repo, map[string]string{"n": "1"})
	long := func() tgr.Job { return job(s.first(id), "long") }
	has := func(text string) func() bool {
		return func() bool { return strings.Contains(s.jobLog(long().ID), text) }
	}
	s.await("the job to count", has("line 20 "))
	s.kill()
	s.start()
	s.await("the job to go on", has("line 70 "))
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("the server that was terminated: %v", err)
	}
	s.start()
	s.await("the job to go on once more", has("line 120 "))
	s.kill()
	s.start()
	for _, r := range s.completed(id) {
		for _, j := range r.Jobs {
			if j.Conclusion != tgr.Success || j.Tries != 1 {
				t.Errorf("job %s: %s after %d tries: %s", j.Name, j.Conclusion, j.Tries, j.Reason)
			}
		}
	}
	var want, got []string
	for i := range 150 {
		want = append(want, fmt.Sprintf("line %d ***", i+1))
	}
	text := s.jobLog(long().ID)
	for line := range strings.Lines(text) {
		if i := strings.Index(line, "line "); i >= 0 && strings.HasSuffix(line, "***\n") {
			got = append(got, strings.TrimSpace(line[i:]))
		}
	}
	if !slices.Equal(want, got) {
		t.Errorf("the log has %d of 150 lines, or in another order:\n%s", len(got), text)
	}
	if !strings.Contains(text, "half 75 n 150 before yes ***") || strings.Contains(text, "hush") && !strings.Contains(text, "add-mask::hush") {
		t.Errorf("the log:\n%s", text)
	}
	if log := s.jobLog(job(s.first(id), "after").ID); !strings.Contains(log, "got 75+150") {
		t.Errorf("the next job's log:\n%s", log)
	}
	s.stop()
	if left := leftovers(t, s.data); len(left) > 0 {
		t.Errorf("left on the host: %v", left)
	}
	dir, err := tapesDir(filepath.Join(s.data, "data"))
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("tapes are left: %v, %v", left, err)
	}
	os.Remove(dir)
}

// jobLog is the whole log of a job; "" if there is none yet.
func (s *site) jobLog(id tgr.JobID) string {
	s.t.Helper()
	if id == 0 {
		return ""
	}
	r, err := s.client.Log(s.t.Context(), id, web.LogOptions{})
	if tgr.CodeOf(err) == tgr.NotFound {
		return ""
	}
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}
