package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
)

// A full disk refuses webhooks, so that GitHub shows them as failed, and loses nothing that was accepted; when there is
// room again all goes on.
func TestDiskFull(t *testing.T) {
	t.Parallel() // it mostly waits
	data := t.TempDir()
	if err := unix.Mount("tmpfs", data, "tmpfs", 0, "size=12m"); err != nil {
		t.Skipf("a small file system needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(data, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := openSite(t, "TGR_DATA_DIR="+data, "REPOSITORY_PATH="+t.TempDir())
	wait, open := gate(t)
	repo := s.repo("acme/full", map[string]string{workflowDir + "/ci.yml": "on: push\njobs: {a: {runs-on: linux, steps: [{run: '" + wait + "; head -c 3000000 /dev/urandom | base64; echo the end'}]}}\n"})
	running := s.push(repo, nil)
	s.await("the job", func() bool { return job(s.first(running), "a").Status == tgr.InProgress })
	filler := filepath.Join(data, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	f.Close()
	open()
	payload := repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))
	refused, unready := 0, false
	var accepted []tgr.DeliveryID
	for range 20 {
		payload = append(payload, ' ') // another body
		a, err := githubtest.Deliver(t.Context(), s.url+"/webhook", "push", payload, testSecret)
		if err != nil {
			t.Fatal(err)
		}
		switch a.Status {
		case http.StatusServiceUnavailable:
			refused++
			unready = unready || strings.HasPrefix(s.get("/readyz"), "503 ")
			if a.Header.Get("Retry-After") == "" {
				t.Error("503 without Retry-After")
			}
		case http.StatusAccepted:
			accepted = append(accepted, tgr.DeliveryID(a.Delivery))
		default:
			t.Errorf("%d %s", a.Status, a.Body)
		}
	}
	// The job that cannot write its log ends, which makes room again: what counts is what was said in between.
	if refused == 0 || !unready {
		t.Errorf("%d of 20 webhooks were refused, and did /readyz say so: %v", refused, unready)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s.await("readiness", func() bool { return strings.HasPrefix(s.get("/readyz"), "200 ") })
	// The job that ran when there was no room is not waited for: it is retried when its lease has ended.
	for _, id := range append(accepted, s.send("push", append(payload, ' '))) {
		r := s.completed(id)[0]
		if r.Conclusion != tgr.Success {
			t.Errorf("run %d: %s: %s %s", r.ID, r.Conclusion, r.Reason, outcomes(r))
		}
	}
}
