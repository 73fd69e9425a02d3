package main

import (
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
)

// localJob begins the services of the first job of a tgr run.
func localJob(t *testing.T, repo string) dispatch.Served {
	t.Helper()
	s, closeServices := localServices(slog.New(slog.DiscardHandler))
	t.Cleanup(closeServices)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served, err := s.Begin(t.Context(), dispatch.Grant{Job: 1, Lease: repo, Run: tgr.Run{ID: 1, Event: tgr.Event{
		Name: "push", Ref: "refs/heads/main", Repo: tgr.Repo{FullName: repo, DefaultBranch: "main"}}}}, l)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond) // nobody starts two within one
	return served
}

// ask sends a request of a job to its services, and returns a field of the answer, which has to have this status.
func ask(t *testing.T, job dispatch.Served, status int, method, url, body, field string) string {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+job.Env["ACTIONS_RUNTIME_TOKEN"])
	req.Header.Set("X-Ms-Blob-Type", "BlockBlob")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != status {
		t.Fatalf("%s %s: %s, want %d", method, url, resp.Status, status)
	}
	var reply map[string]any
	json.NewDecoder(resp.Body).Decode(&reply)
	text, _ := reply[field].(string)
	return text
}

const cacheService = "twirp/github.actions.results.api.v1.CacheService/"

// Two `tgr run` at a time share a folder, and number their jobs from 1: what one job has begun is not taken by the end of
// the other.
func TestLocalServicesApart(t *testing.T) {
	t.Setenv("TGR_DATA_DIR", t.TempDir())
	t.Setenv("TGR_RESULTS_DIR", "")
	a, b := localJob(t, "o/a"), localJob(t, "o/b")
	defer a.End()
	at := ask(t, a, 200, "POST", a.Env["ACTIONS_RESULTS_URL"]+cacheService+"CreateCacheEntry", `{"key":"k","version":"v"}`, "signed_upload_url")
	b.End()
	ask(t, a, 201, "PUT", at, "bytes", "")
}

// What a job calls its caches does not reach the terminal of whoever lists them as it is.
func TestCacheListPrintable(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TGR_DATA_DIR", dir)
	t.Setenv("TGR_RESULTS_DIR", "")
	a := localJob(t, "o/a")
	const key = "key\u009b31m\u202eyek"
	at := ask(t, a, 200, "POST", a.Env["ACTIONS_RESULTS_URL"]+cacheService+"CreateCacheEntry", `{"key":"`+key+`","version":"v"}`, "signed_upload_url")
	ask(t, a, 201, "PUT", at, "bytes", "")
	ask(t, a, 200, "POST", a.Env["ACTIONS_RESULTS_URL"]+cacheService+"FinalizeCacheEntryUpload", `{"key":"`+key+`","version":"v","size_bytes":"5"}`, "")
	a.End()
	var out strings.Builder
	cmd := newCacheListCmd()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "key 31m yek") {
		t.Errorf("the list is %q", &out)
	}
}
