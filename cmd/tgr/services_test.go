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

// Two `tgr run` at a time share a folder, and number their jobs from 1: what one job has begun is not taken by the end of
// the other.
func TestLocalServicesApart(t *testing.T) {
	t.Setenv("TGR_DATA_DIR", t.TempDir())
	t.Setenv("TGR_RESULTS_DIR", "")
	begin := func(repo string) dispatch.Served {
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
	send := func(method, url, body string, headers map[string]string) *http.Response {
		req, err := http.NewRequest(method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range headers {
			req.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	a, b := begin("o/a"), begin("o/b")
	defer a.End()
	resp := send("POST", a.Env["ACTIONS_RESULTS_URL"]+"twirp/github.actions.results.api.v1.CacheService/CreateCacheEntry", `{"key":"k","version":"v"}`,
		map[string]string{"Content-Type": "application/json", "Authorization": "Bearer " + a.Env["ACTIONS_RUNTIME_TOKEN"]})
	var created struct {
		URL string `json:"signed_upload_url"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&created); err != nil || created.URL == "" {
		t.Fatalf("%s: %v", resp.Status, err)
	}
	b.End()
	if resp := send("PUT", created.URL, "bytes", map[string]string{"X-Ms-Blob-Type": "BlockBlob"}); resp.StatusCode != http.StatusCreated {
		t.Errorf("the upload of a job of another tgr run: %s", resp.Status)
	}
}
