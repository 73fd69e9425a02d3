package results

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// gitHub is what the services ask of GitHub: what a token may read.
type gitHub struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string // with which tokens
}

func newGitHub(t *testing.T) *gitHub {
	g := &gitHub{}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.asked = append(g.asked, r.Header.Get("Authorization"))
		switch {
		case r.URL.Path == "/repos/o/r/actions/artifacts" && r.Header.Get("Authorization") == "Bearer pat":
			fmt.Fprint(w, `{"total_count":0,"artifacts":[]}`)
		case r.Header.Get("Authorization") == "Bearer moved":
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusMovedPermanently)
		default:
			http.Error(w, "{}", http.StatusNotFound)
		}
	}))
	t.Cleanup(g.Close)
	return g
}

// reading is a job that may read other runs.
func reading(j Job, api string) Job {
	j.Runs = Runs{API: api, Token: "own", Reads: true}
	return j
}

// rest asks the API below the services.
func (c *client) rest(path, token string) response {
	c.t.Helper()
	req, err := http.NewRequest("GET", c.base+apiPath+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "token "+token)
	}
	resp, err := http.DefaultTransport.RoundTrip(req) // which follows no redirect
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return response{resp.StatusCode, resp.Header, b}
}

// page is one page of a list.
func (c *client) page(path string) (names []string, total int, link string) {
	c.t.Helper()
	r := c.want(200, c.rest(path, "own"))
	var reply struct {
		Total     int `json:"total_count"`
		Artifacts []restArtifact
	}
	if err := json.Unmarshal(r.body, &reply); err != nil {
		c.t.Fatal(err)
	}
	for _, a := range reply.Artifacts {
		names = append(names, a.Name)
	}
	return names, reply.Total, r.header.Get("Link")
}

// A later run lists, filters, pages and downloads what an earlier one has left.
func TestOtherRun(t *testing.T) {
	s := opened(t, Config{})
	a := began(t, s, jobOn(1, "main"))
	for i := range 5 {
		a.want(200, a.upload(fmt.Sprint("x", i), "of x", fmt.Sprint(i)))
	}
	again := jobOn(3, "main")
	again.Run.ID, again.Run.Attempt = a.x.job.Run.ID, 2
	b := began(t, s, again)
	b.want(200, b.upload("x1", "again"))
	const run = "/repos/O/R/actions/runs/101/artifacts"
	c := began(t, s, reading(jobOn(2, "topic"), "http://github.invalid"))
	names, total, link := c.page(run + "?per_page=2")
	if diff := cmp.Diff([]string{"x1", "x4"}, names); diff != "" || total != 5 || !strings.Contains(link, "page=2") || !strings.Contains(link, `rel="next"`) {
		t.Errorf("the first page (-want +got):\n%sof %d, %s", diff, total, link)
	}
	if names, total, link = c.page(run + "?per_page=2&page=3"); len(names) != 1 || total != 5 || link != "" {
		t.Errorf("the last page: %v of %d, %s", names, total, link)
	}
	if names, total, _ = c.page(run + "?page=65535&per_page=65535"); len(names) != 0 || total != 5 {
		t.Errorf("a page that is not there: %v of %d", names, total)
	}
	if names, total, _ = c.page(run + "?name=x1&per_page=junk"); len(names) != 1 || total != 1 {
		t.Errorf("by name: %v of %d", names, total)
	}
	if names, _, _ = c.page("/repos/o/r/actions/runs/102/artifacts"); len(names) != 0 {
		t.Errorf("the job's own run, which has none: %v", names)
	}
	var one struct{ Artifacts []restArtifact }
	if err := json.Unmarshal(c.rest(run+"?name=x1", "own").body, &one); err != nil || len(one.Artifacts) != 1 {
		t.Fatalf("%v, %v", one, err)
	}
	x := one.Artifacts[0]
	if r := c.do("GET", x.URL, nil, "Authorization", "Bearer own"); r.status != 200 || r.field("name") != "x1" || r.field("digest") != x.Digest {
		t.Errorf("by its address: %s", r)
	}
	if r := c.do("GET", x.Download, nil, "Authorization", "Bearer own"); r.status != 200 || string(r.body) != "again" {
		t.Errorf("its bytes: %s", r)
	}
}

// Who may read what: tokens, permissions, strangers, other repositories, what has expired.
func TestOtherRunRefused(t *testing.T) {
	now := newClock()
	hub := newGitHub(t)
	s := opened(t, Config{Now: now.Now, Limits: Limits{Retention: time.Hour}})
	ours, theirs := began(t, s, jobOn(1, "main")), began(t, s, pullOn(2, 9, true))
	ours.want(200, ours.upload("ours", "ours"))
	theirs.want(200, theirs.upload("theirs", "theirs"))
	foreign := jobOn(3, "main")
	foreign.Run.Event.Repo = tgr.Repo{ID: 8, FullName: "o/other", DefaultBranch: "main"}
	elsewhere := began(t, s, foreign)
	elsewhere.want(200, elsewhere.upload("foreign", "foreign"))

	stranger := func(id tgr.JobID, number int) Job {
		j := reading(pullOn(id, number, true), hub.URL)
		j.Runs.Own = true
		return j
	}
	unread := reading(jobOn(6, "main"), hub.URL)
	unread.Runs.Reads = false
	branch, same, other, barred := began(t, s, reading(jobOn(4, "topic"), hub.URL)), began(t, s, stranger(5, 9)), began(t, s, stranger(7, 10)), began(t, s, unread)
	path := func(run tgr.RunID) string { return fmt.Sprintf("/repos/o/r/actions/runs/%d/artifacts", run) }
	toGitHub := 307
	for _, tt := range []struct {
		what  string
		c     *client
		path  string
		token string
		want  int
		names string
	}{
		{"a branch reads a branch", branch, path(101), "own", 200, "ours"},
		{"a branch reads a fork", branch, path(102), "own", 200, "theirs"},
		{"a fork reads its own pull request", same, path(102), "own", 200, "theirs"},
		{"a fork reads a branch", same, path(101), "own", 200, ""},
		{"a fork reads another pull request", other, path(102), "own", 200, ""},
		{"a fork asks for an artifact of a branch", same, "/repos/o/r/actions/artifacts/1", "own", 404, ""},
		{"a fork downloads an artifact of a branch", same, "/repos/o/r/actions/artifacts/1/zip", "own", 404, ""},
		{"no token", branch, path(101), "", 401, ""},
		{"a token that GitHub knows", branch, path(101), "pat", 200, "ours"},
		{"a token that GitHub does not know", branch, path(101), "wrong", 401, ""},
		{"a token that GitHub sends away", branch, path(101), "moved", 401, ""},
		{"without actions: read", barred, path(101), "own", 403, ""},
		{"without actions: read, with another token", barred, path(101), "pat", 200, "ours"},
		{"another repository's name", branch, "/repos/o/other/actions/runs/103/artifacts", "own", toGitHub, ""},
		{"another repository's run", branch, path(103), "own", toGitHub, ""},
		{"another repository's artifact", branch, "/repos/o/r/actions/artifacts/3", "own", toGitHub, ""},
		{"a run of GitHub's", branch, path(18_000_000_000), "own", toGitHub, ""},
		{"no run", branch, "/repos/o/r/actions/runs/x/artifacts", "own", toGitHub, ""},
		{"anything else", branch, "/user", "own", toGitHub, ""},
	} {
		r := tt.c.rest(tt.path, tt.token)
		var reply struct{ Artifacts []restArtifact }
		json.Unmarshal(r.body, &reply)
		var names []string
		for _, a := range reply.Artifacts {
			names = append(names, a.Name)
		}
		if r.status != tt.want || strings.Join(names, " ") != tt.names {
			t.Errorf("%s: %s with %v, want %d with %q", tt.what, r, names, tt.want, tt.names)
		}
		if at := r.header.Get("Location"); tt.want == toGitHub && at != hub.URL+tt.path {
			t.Errorf("%s: sent to %s, want %s", tt.what, at, hub.URL+tt.path)
		}
	}
	hub.mu.Lock()
	if diff := cmp.Diff([]string{"Bearer pat", "Bearer wrong", "Bearer moved", "Bearer pat"}, hub.asked); diff != "" {
		t.Errorf("GitHub was asked about (-want +got):\n%s", diff) // and once by each job, and never about the job's own
	}
	hub.mu.Unlock()
	for i := range 2 * vouchTokens {
		branch.rest(path(101), fmt.Sprint("guess ", i))
	}
	if hub.mu.Lock(); len(hub.asked) > vouchTokens+1 {
		t.Errorf("a job had GitHub asked %d times", len(hub.asked))
	}
	hub.mu.Unlock()
	now.add(2 * time.Hour)
	if r := branch.rest("/repos/o/r/actions/artifacts/1/zip", "own"); r.status != 404 {
		t.Errorf("one that has expired: %s", r)
	}
}

// Only a step that names a run of ours, in its own repository, is told of another API.
func TestEnvFor(t *testing.T) {
	s := opened(t, Config{})
	a := began(t, s, jobOn(1, "main"))
	a.want(200, a.upload("x", "x"))
	c := began(t, s, reading(jobOn(2, "main"), "https://api.github.com"))
	other := reading(jobOn(3, "main"), "https://api.github.com")
	other.Run.Event.Repo.ID = 8
	without := began(t, s, jobOn(4, "main"))
	const here = "http://127.0.0.1:7/github"
	for _, tt := range []struct {
		c      *client
		inputs map[string]string
		want   string
	}{
		{c, map[string]string{"run-id": "101"}, here},
		{c, map[string]string{"run_id": "101", "name": "x"}, here},
		{c, map[string]string{"run-id": "102"}, ""},
		{c, map[string]string{"run-id": "18000000000"}, ""},
		{c, map[string]string{"run-id": "101; rm"}, ""},
		{c, map[string]string{"run-id": ""}, ""},
		{c, map[string]string{"retention-days": "101"}, ""},
		{c, nil, ""},
		{began(t, s, other), map[string]string{"run-id": "101"}, ""},
		{without, map[string]string{"run-id": "101"}, ""},
	} {
		env, err := tt.c.x.EnvFor(t.Context(), "127.0.0.1:7", tt.inputs)
		if err != nil || env["GITHUB_API_URL"] != tt.want || len(env) > 1 {
			t.Errorf("job %d, %v: %v, %v; want %q", tt.c.x.job.ID, tt.inputs, env, err, tt.want)
		}
	}
}
