package githubtest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func start(t *testing.T, c Config) *Server {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func create(t *testing.T, s *Server, name string) *Repo {
	t.Helper()
	r, err := s.CreateRepo(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func put(t *testing.T, r *Repo, branch string, files map[string]string) string {
	t.Helper()
	sha, err := r.Commit(branch, "change", files)
	if err != nil {
		t.Fatal(err)
	}
	return sha
}

// client calls git as a user would.
func client(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Env = append(gitEnv(), "GIT_TERMINAL_PROMPT=0")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// call sends a request to the API and decodes the answer into v.
func (s *Server) call(t *testing.T, method, path, token string, body, v any) *http.Response {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.API()+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if v != nil {
		if err := json.Unmarshal(data, v); err != nil {
			t.Fatalf("%v: %s", err, data)
		}
	}
	return resp
}

func TestGitOverHTTP(t *testing.T) {
	s := start(t, Config{Token: "t0ken"})
	r := create(t, s, "ada/engine")
	first := put(t, r, "main", map[string]string{"a": "1", "dir/b": "2"})
	second, err := r.CommitEntries("main", "more", Entry{Path: "a", Delete: true}, Entry{Path: "run", Data: "#!/bin/sh\n", Mode: "100755"},
		Entry{Path: "link", Data: "run", Mode: "120000"})
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{r.URL, strings.TrimSuffix(r.URL, ".git")} {
		dir := filepath.Join(t.TempDir(), "clone")
		if out, err := client(t, "clone", "--quiet", url, dir); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if _, err := os.Lstat(filepath.Join(dir, "a")); err == nil {
			t.Error("a is still there")
		}
		if target, err := os.Readlink(filepath.Join(dir, "link")); err != nil || target != "run" {
			t.Errorf("link -> %q, %v", target, err)
		}
		// A push over HTTP, and a single commit by its SHA.
		if out, err := client(t, "-C", dir, "push", "--quiet", "origin", "HEAD:refs/heads/pushed"); err != nil || r.SHA("pushed") != second {
			t.Errorf("push: %v: %s", err, out)
		}
		if out, err := client(t, "-C", dir, "fetch", "--quiet", "--depth=1", "origin", first); err != nil {
			t.Errorf("fetch by SHA: %v: %s", err, out)
		}
	}
	r.SetPrivate(true)
	if out, err := client(t, "ls-remote", r.URL); err == nil {
		t.Errorf("a private repository without a token: %s", out)
	}
	if out, err := client(t, "ls-remote", strings.Replace(r.URL, "://", "://x:t0ken@", 1)); err != nil {
		t.Errorf("with the token: %v: %s", err, out)
	}
	if out, err := client(t, "ls-remote", s.URL+"/ada/none.git"); err == nil {
		t.Errorf("a repository that is not there: %s", out)
	}
	if _, err := s.CreateRepo("ada/engine"); err == nil {
		t.Error("the same repository twice")
	}
	if _, err := s.CreateRepo("engine"); err == nil {
		t.Error("a repository without an owner")
	}
}

func TestPulls(t *testing.T) {
	s := start(t, Config{})
	r := create(t, s, "ada/engine")
	put(t, r, "main", map[string]string{"a": "1"})
	fork, err := s.Fork(r, "bob/engine")
	if err != nil {
		t.Fatal(err)
	}
	put(t, fork, "topic", map[string]string{"b": "1"})
	p, err := r.OpenPull(fork, "topic", "main")
	if err != nil {
		t.Fatal(err)
	}
	if p.Number != 1 || p.MergeSHA == "" || r.SHA("refs/pull/1/head") != p.HeadSHA || r.SHA("refs/pull/1/merge") != p.MergeSHA {
		t.Errorf("%+v", p)
	}
	if files, err := r.Git("ls-tree", "--name-only", "refs/pull/1/merge"); err != nil || files != "a\nb" {
		t.Errorf("the merge has %q, %v", files, err)
	}
	var ev struct {
		Action string
		Number int
		PR     struct {
			Merge string `json:"merge_commit_sha"`
			Head  struct {
				SHA  string
				Repo struct{ ID int64 }
			}
		} `json:"pull_request"`
		Repository struct {
			ID       int64
			FullName string `json:"full_name"`
		}
	}
	if err := json.Unmarshal(p.Event("opened"), &ev); err != nil {
		t.Fatal(err)
	}
	if ev.Action != "opened" || ev.PR.Merge != p.MergeSHA || ev.PR.Head.SHA != p.HeadSHA || ev.PR.Head.Repo.ID != fork.ID || ev.Repository.ID != r.ID {
		t.Errorf("%+v", ev)
	}
	// A conflict has no merge; a merge moves the base.
	put(t, fork, "topic", map[string]string{"a": "theirs"})
	put(t, r, "main", map[string]string{"a": "ours"})
	if err := p.Sync(); err != nil || p.MergeSHA != "" || r.SHA("refs/pull/1/merge") != "" || p.Merge() == nil {
		t.Errorf("a conflict: %+v, %v", p, err)
	}
	put(t, fork, "topic", map[string]string{"a": "ours"})
	if err := p.Sync(); err != nil || p.Merge() != nil || r.SHA("main") != p.MergeSHA {
		t.Errorf("a merge: %+v, %v", p, err)
	}
	var got struct{ Number int }
	if resp := s.call(t, "GET", "repos/ada/engine/pulls/1", "", nil, &got); resp.StatusCode != 200 || got.Number != 1 {
		t.Errorf("%d %+v", resp.StatusCode, got)
	}
}

func TestPushEvent(t *testing.T) {
	s := start(t, Config{})
	r := create(t, s, "ada/engine")
	first := put(t, r, "main", map[string]string{"a": "1"})
	second := put(t, r, "main", map[string]string{"a": "2", "b": "1"})
	var ev struct {
		Ref, Before, After string
		Created, Deleted   bool
		Commits            []struct {
			ID              string
			Added, Modified []string
		}
		Head *struct{ ID, Message string } `json:"head_commit"`
	}
	decode := func(payload []byte) {
		t.Helper()
		ev.Head, ev.Commits = nil, nil
		if err := json.Unmarshal(payload, &ev); err != nil {
			t.Fatal(err)
		}
	}
	decode(r.PushEvent("refs/heads/main", first, second))
	if ev.Created || ev.Deleted || len(ev.Commits) != 1 || ev.Head == nil || ev.Head.ID != second || ev.Head.Message != "change" ||
		strings.Join(ev.Commits[0].Added, " ") != "b" || strings.Join(ev.Commits[0].Modified, " ") != "a" {
		t.Errorf("%+v", ev)
	}
	decode(r.PushEvent("refs/heads/main", Zero, second))
	if !ev.Created || len(ev.Commits) != 2 {
		t.Errorf("%+v", ev)
	}
	decode(r.PushEvent("refs/heads/main", second, Zero))
	if !ev.Deleted || ev.Head != nil {
		t.Errorf("%+v", ev)
	}
}

func TestAPI(t *testing.T) {
	s := start(t, Config{Token: "t0ken"})
	r := create(t, s, "ada/engine")
	sha := put(t, r, "main", map[string]string{"a": "1"})
	for _, tt := range []struct {
		name, method, path, token string
		body                      any
		status                    int
	}{
		{"no credentials", "POST", "repos/ada/engine/statuses/" + sha, "", object{"state": "success"}, 401},
		{"wrong token", "POST", "repos/ada/engine/statuses/" + sha, "x", object{"state": "success"}, 401},
		{"status", "POST", "repos/ada/engine/statuses/" + sha, "t0ken", object{"state": "success", "context": "c"}, 201},
		{"no such commit", "POST", "repos/ada/engine/statuses/" + Zero, "t0ken", object{"state": "success"}, 422},
		{"state", "POST", "repos/ada/engine/statuses/" + sha, "t0ken", object{"state": "fine"}, 422},
		{"description", "POST", "repos/ada/engine/statuses/" + sha, "t0ken", object{"state": "success", "description": strings.Repeat("x", 141)}, 422},
		{"check run with a token", "POST", "repos/ada/engine/check-runs", "t0ken", object{"name": "n", "head_sha": sha}, 403},
		{"no such repository", "GET", "repos/ada/none", "t0ken", nil, 404},
		{"comment", "POST", "repos/ada/engine/issues/1/comments", "t0ken", object{"body": "hello"}, 201},
		{"empty comment", "POST", "repos/ada/engine/issues/1/comments", "t0ken", object{"body": ""}, 422},
		{"long comment", "POST", "repos/ada/engine/issues/1/comments", "t0ken", object{"body": strings.Repeat("x", 65_537)}, 422},
		{"comments", "GET", "repos/ada/engine/issues/1/comments", "t0ken", nil, 200},
		{"no such comment", "PATCH", "repos/ada/engine/issues/comments/9", "t0ken", object{"body": "x"}, 404},
		{"contents", "GET", "repos/ada/engine/contents/a", "t0ken", nil, 200},
		{"no contents", "GET", "repos/ada/engine/contents/b", "t0ken", nil, 404},
		{"commit", "GET", "repos/ada/engine/commits/main", "t0ken", nil, 200},
		{"statuses of a commit", "GET", "repos/ada/engine/commits/" + sha + "/statuses", "t0ken", nil, 200},
		{"user", "GET", "user", "t0ken", nil, 200},
		{"app without being one", "GET", "app", "t0ken", nil, 401},
		{"elsewhere", "GET", "gists", "t0ken", nil, 404},
	} {
		if resp := s.call(t, tt.method, tt.path, tt.token, tt.body, nil); resp.StatusCode != tt.status {
			t.Errorf("%s: %d, want %d", tt.name, resp.StatusCode, tt.status)
		}
	}
	if st := s.Statuses("ada/engine"); len(st) != 1 || st[0].SHA != sha {
		t.Errorf("%+v", st)
	}
	if c := s.Comments("ada/engine"); len(c) != 1 || c[0].Number != 1 || c[0].User["login"] != "tgr-bot" {
		t.Errorf("%+v", c)
	}
}

func TestCheckRuns(t *testing.T) {
	s := start(t, Config{})
	r := create(t, s, "ada/engine")
	sha := put(t, r, "main", map[string]string{"a": "1"})
	var run CheckRun
	note := Annotation{Path: "a", StartLine: 1, EndLine: 1, Level: "failure", Message: "m"}
	if resp := s.call(t, "POST", "repos/ada/engine/check-runs", "any", object{"name": "n", "head_sha": sha, "status": "queued"}, &run); resp.StatusCode != 201 {
		t.Fatal(resp.Status)
	}
	path := "repos/ada/engine/check-runs/1002"
	for _, body := range []object{
		{"status": "completed", "conclusion": "failure", "output": object{"title": "t", "summary": "s", "annotations": []Annotation{note}}},
		{"output": object{"title": "t", "summary": "s", "annotations": []Annotation{note}}},
	} {
		if resp := s.call(t, "PATCH", path, "any", body, nil); resp.StatusCode != 200 {
			t.Errorf("%s", resp.Status)
		}
	}
	for _, bad := range []object{
		{"status": "completed"},
		{"output": object{"title": "t", "annotations": make([]Annotation, 51)}},
		{"output": object{"title": "t", "summary": strings.Repeat("x", 65_536)}},
	} {
		if resp := s.call(t, "PATCH", path, "any", bad, nil); resp.StatusCode != 422 {
			t.Errorf("%v: %s", len(bad), resp.Status)
		}
	}
	got := s.CheckRuns("ada/engine")
	if len(got) != 1 || got[0].Conclusion != "failure" || len(got[0].Output.Annotations) != 2 || got[0].Updates != 2 {
		t.Errorf("%+v", got)
	}
	var list struct {
		Total int `json:"total_count"`
	}
	if s.call(t, "GET", "repos/ada/engine/commits/"+sha+"/check-runs", "any", nil, &list); list.Total != 1 {
		t.Errorf("%d check runs of the commit", list.Total)
	}
}

func TestFaults(t *testing.T) {
	s := start(t, Config{})
	create(t, s, "ada/engine")
	s.Script(Fault{Path: "repos/ada", Status: 503, Times: 2, Header: http.Header{"Retry-After": {"3"}}})
	s.Script(Fault{Method: "GET", Path: "engine", Delay: 30 * time.Millisecond})
	s.Script(Fault{Drop: true})
	var codes []int
	for range 2 {
		resp := s.call(t, "GET", "repos/ada/engine", "", nil, nil)
		codes = append(codes, resp.StatusCode)
		if resp.Header.Get("Retry-After") != "3" {
			t.Error("the fault's header is missing")
		}
	}
	begin := time.Now()
	codes = append(codes, s.call(t, "GET", "repos/ada/engine", "", nil, nil).StatusCode)
	if time.Since(begin) < 30*time.Millisecond || codes[0] != 503 || codes[1] != 503 || codes[2] != 200 {
		t.Errorf("%v", codes)
	}
	resp, err := http.Post(s.API()+"repos/ada/engine", "application/json", nil)
	if err == nil {
		resp.Body.Close()
		t.Errorf("the connection was not dropped: %s", resp.Status)
	}
	s.call(t, "GET", "repos/ada/engine", "", nil, nil)
	all := s.Requests()
	if len(all) != 5 || all[0].Status != 503 || all[3].Status != 0 || all[4].Status != 200 {
		t.Errorf("%+v", all)
	}
}

func TestDeliver(t *testing.T) {
	var got *http.Request
	var body []byte
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, "thanks")
	}))
	defer hook.Close()
	a, err := Deliver(t.Context(), hook.URL, "push", []byte("Hello, World!"), "It's a Secret to Everybody")
	if err != nil || a.Status != 202 || string(a.Body) != "thanks" {
		t.Fatalf("%+v, %v", a, err)
	}
	if got.Header.Get("X-Hub-Signature-256") != "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17" ||
		got.Header.Get("X-GitHub-Event") != "push" || len(a.Delivery) != 36 || got.Header.Get("X-GitHub-Delivery") != a.Delivery ||
		!strings.HasPrefix(got.UserAgent(), "GitHub-Hookshot/") || string(body) != "Hello, World!" {
		t.Errorf("%v %q", got.Header, body)
	}
	if again, err := Redeliver(t.Context(), hook.URL, "push", nil, "s", a.Delivery); err != nil || again.Delivery != a.Delivery {
		t.Errorf("%+v, %v", again, err)
	}
}
