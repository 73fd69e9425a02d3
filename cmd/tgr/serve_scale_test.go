package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/web"
)

// A hundred pushes at once and two workers: each push has its run, all end, and the oldest are served first.
func TestManyPushes(t *testing.T) {
	const pushes = 100
	s := openPlainSite(t, "MAX_CONCURRENT_WORKFLOWS=2", "TGR_WEBHOOK_RATE=1000", "GITHUB_APP_ID=")
	repo := s.repo("acme/many", map[string]string{workflowDir + "/ci.yml": "on: push\njobs:\n  a: {runs-on: linux, steps: [{run: 'true'}]}\n"})
	ids := make([]tgr.DeliveryID, pushes)
	before := repo.SHA("main")
	var payloads [][]byte
	for i := range pushes {
		sha, err := repo.Commit("main", fmt.Sprint("commit ", i), map[string]string{"n": fmt.Sprint(i)})
		if err != nil {
			t.Fatal(err)
		}
		payloads = append(payloads, repo.PushEvent("refs/heads/main", before, sha))
		before = sha
	}
	var wg sync.WaitGroup
	for i := range pushes {
		wg.Go(func() {
			a, err := githubtest.Deliver(t.Context(), s.url+"/webhook", "push", payloads[i], testSecret)
			if err != nil || a.Status != 202 {
				t.Errorf("push %d: %v, %+v", i, err, a)
				return
			}
			ids[i] = tgr.DeliveryID(a.Delivery)
		})
	}
	wg.Wait()
	numbers := map[int]bool{}
	for _, id := range ids {
		for _, r := range s.completed(id) {
			if r.Conclusion != tgr.Success || numbers[r.Number] {
				t.Errorf("run %d #%d: %s: %s", r.ID, r.Number, r.Conclusion, r.Reason)
			}
			numbers[r.Number] = true
		}
	}
	if len(numbers) != pushes {
		t.Errorf("%d runs, want %d", len(numbers), pushes)
	}
	if got := grep(s.get("/metrics"), `tgr_jobs_total{result="success"}`); !strings.HasSuffix(got, fmt.Sprintf(" %d\n", pushes)) {
		t.Errorf("metrics: %s", got)
	}
}

// The largest matrix that there may be, which is cancelled on its way, and a long and wide graph.
func TestLargeRuns(t *testing.T) {
	s := openPlainSite(t, "MAX_CONCURRENT_WORKFLOWS=4")
	s.patience = 10 * time.Minute // 257 processes, and each step of each decided anew, on a busy host
	values := make([]string, 16)
	for i := range values {
		values[i] = fmt.Sprint(i)
	}
	list := "[" + strings.Join(values, ", ") + "]"
	var graph strings.Builder
	graph.WriteString("on: push\njobs:\n")
	for i := range 200 { // every twentieth runs
		needs := ""
		if i > 0 {
			needs = fmt.Sprintf("needs: [j%d, j%d], ", i-1, max(0, i-10))
		}
		fmt.Fprintf(&graph, "  j%d: {%sif: '${{ always() && %t }}', runs-on: linux, steps: [{run: 'true'}]}\n", i, needs, i%20 == 0)
	}
	repo := s.repo("acme/large", map[string]string{
		workflowDir + "/graph.yml":  graph.String(),
		workflowDir + "/matrix.yml": "on: push\njobs:\n  a: {runs-on: linux, strategy: {matrix: {x: " + list + ", y: " + list + "}}, steps: [{run: 'true'}]}\n  z: {needs: a, if: always(), runs-on: linux, steps: [{run: 'true'}]}\n",
	})
	id := s.push(repo, nil)
	var matrix web.RunDetail
	s.await("some jobs of the matrix", func() bool {
		list, err := s.client.Runs(t.Context(), web.Filter{Delivery: id, Workflow: workflowDir + "/matrix.yml"})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Runs) == 0 {
			return false
		}
		if matrix, err = s.client.Run(t.Context(), list.Runs[0].ID, 0); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(matrix.Jobs, func(j tgr.Job) bool { return j.Conclusion == tgr.Success })
	})
	if _, err := s.client.Cancel(t.Context(), matrix.ID, web.CancelRequest{}); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.completed(id) {
		n := map[tgr.Conclusion]int{}
		for _, j := range r.Jobs {
			n[j.Conclusion]++
		}
		if strings.HasSuffix(r.WorkflowFile, "graph.yml") {
			if diff := cmp.Diff(map[tgr.Conclusion]int{tgr.Success: 10, tgr.Skipped: 190}, n); diff != "" || r.Conclusion != tgr.Success {
				t.Errorf("graph: %s (-want +got):\n%s", r.Conclusion, diff)
			}
			continue
		}
		if n[tgr.Success]+n[tgr.Cancelled] != 257 || n[tgr.Cancelled] < 100 || job(r, "z").Conclusion != tgr.Success || r.Conclusion != tgr.Cancelled {
			t.Errorf("matrix: %s: %v; z: %s", r.Conclusion, n, job(r, "z").Conclusion)
		}
	}
}
