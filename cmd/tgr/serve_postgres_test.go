package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/store/storetest"
	"github.com/terraphim/tgr/web"
)

// A server on PostgreSQL works while that is there, and says so while it is not; what was accepted is run in the end. A second
// server waits, and takes over, with the job that runs, when the first is killed.
func TestPostgres(t *testing.T) {
	database := storetest.New(t)
	url, err := database.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f := checkDatabase(t.Context(), url); !f.OK || !strings.HasPrefix(f.Found, "PostgreSQL 1") {
		t.Errorf("doctor: %+v", f)
	}
	s := openSite(t, "TGR_DATABASE_URL="+url)
	goOn := filepath.Join(s.data, "go on")
	repo := s.repo("acme/app", map[string]string{workflowDir + "/ci.yml": "on: push\njobs:\n  j:\n    runs-on: ubuntu-latest\n    steps:\n      - run: test ! -e wait || until test -e '" + goOn + "'; do sleep 0.1; done\n"})
	push := func(s *site, files map[string]string) tgr.DeliveryID {
		sha, err := repo.Commit("main", "next", files)
		if err != nil {
			t.Fatal(err)
		}
		return s.send("push", repo.PushEvent("refs/heads/main", strings.Repeat("0", 40), sha))
	}
	succeeded := func(s *site, id tgr.DeliveryID) {
		t.Helper()
		if runs := s.completed(id); len(runs) != 1 || runs[0].Conclusion != tgr.Success {
			t.Fatalf("runs: %+v", runs)
		}
	}
	succeeded(s, push(s, map[string]string{"a": "1"}))

	database.Kill()
	if f := checkDatabase(t.Context(), url); f.OK || !strings.Contains(f.Found, "the database does not answer") {
		t.Errorf("doctor without a database: %+v", f)
	}
	s.await("the server to say that it has no database", func() bool { return s.status("/readyz") == http.StatusServiceUnavailable })
	a, err := githubtest.Deliver(t.Context(), s.url+"/webhook", "push", repo.PushEvent("refs/heads/main", strings.Repeat("0", 40), strings.Repeat("1", 40)), testSecret)
	if err != nil || a.Status != http.StatusServiceUnavailable {
		t.Errorf("a webhook without a database: %+v, %v; want 503", a, err)
	}
	if err := database.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.await("the server to have a database again", func() bool { return s.status("/readyz") == http.StatusOK })
	succeeded(s, push(s, map[string]string{"a": "2"}))

	second := &site{t: t, hub: s.hub, data: s.data, binary: s.binary, env: append(s.env,
		"PORT="+freePort(t), "TGR_DATA_DIR="+filepath.Join(s.data, "second"), "TGR_SECRETS_KEY_FILE="+filepath.Join(s.data, "data", "secrets.key"))}
	started := make(chan struct{})
	go func() { defer close(started); second.start() }()
	t.Cleanup(second.stop)
	second.url = "http://127.0.0.1:" + strings.TrimPrefix(second.env[len(second.env)-3], "PORT=")
	s.await("the second server to wait", func() bool { return second.status("/healthz") == http.StatusOK })
	for _, path := range []string{"/readyz", "/webhook", "/api/runs"} {
		if code := second.status(path); code != http.StatusServiceUnavailable {
			t.Errorf("%s of a server that waits: %d, want 503", path, code)
		}
	}
	running := push(s, map[string]string{"wait": ""})
	s.await("the job to run", func() bool {
		runs, err := s.client.Runs(context.Background(), web.Filter{Status: tgr.InProgress})
		return err == nil && len(runs.Runs) == 1 && runs.Runs[0].Delivery == running
	})
	s.kill()
	if err := os.WriteFile(goOn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	<-started
	if second.client == nil {
		t.FailNow()
	}
	succeeded(second, running)
	succeeded(second, push(second, map[string]string{"a": "3"}))
}

// status is the code of an answer, 0 without one.
func (s *site) status(path string) int {
	resp, err := http.Get(s.url + path)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}
