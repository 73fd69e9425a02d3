package web

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// Every call of the client reaches the keeper as it was meant.
func TestSettingsAPI(t *testing.T) {
	m := newMemory().fill()
	s := newSite(t, m, func(c *Config) { c.Settings = m })
	ctx := t.Context()
	set := SettingRequest{Repo: "acme/bridge", Environment: "prod", Name: "A", Value: "hunter2"}
	var answers []string
	for _, call := range []func() (Done, error){
		func() (Done, error) { return s.client.SetSetting(ctx, Secret, set) },
		func() (Done, error) { return s.client.RemoveSetting(ctx, Secret, set) },
		func() (Done, error) {
			return s.client.SetSetting(ctx, Variable, SettingRequest{Owner: "acme", Name: "B", Value: "1"})
		},
		func() (Done, error) {
			return s.client.RemoveSetting(ctx, Variable, SettingRequest{Repo: "acme/bridge", Name: "B"})
		},
		func() (Done, error) { return s.client.Rotate(ctx) },
		func() (Done, error) {
			return s.client.SetEnvironment(ctx, tgr.Environment{Repo: "acme/bridge", Name: "prod", Branches: []string{"main"}, Approval: true, Wait: 5})
		},
		func() (Done, error) { return s.client.RemoveEnvironment(ctx, "acme/bridge", "prod") },
	} {
		d, err := call()
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, d.Message)
	}
	if list, err := s.client.Settings(ctx, Secret, tgr.Scope{Repo: "acme/bridge", Environment: "prod"}); err != nil || len(list) != 1 || list[0].Name != "A" {
		t.Errorf("secrets: %+v, %v", list, err)
	}
	if list, err := s.client.Environments(ctx, "acme/bridge"); err != nil || len(list) != 0 {
		t.Errorf("environments: %+v, %v", list, err)
	}
	accepted, err := s.client.Approve(ctx, 7, ApproveRequest{Environment: "prod", Reject: true, Comment: "not now", By: "ada"})
	if err != nil || accepted.Message != "environment prod rejected" {
		t.Errorf("approve: %+v, %v", accepted, err)
	}
	want := []string{
		"set secret A=hunter2 of the environment prod of acme/bridge", "remove secret A of the environment prod of acme/bridge",
		"set variable B=1 of the account acme", "remove variable B of the repository acme/bridge", "rotate",
		"environment {Repo:acme/bridge Name:prod Branches:[main] Tags:[] Approval:true Wait:5}", "no environment prod of acme/bridge",
		"list secret of the environment prod of acme/bridge", "environments of acme/bridge", "approve 7 prod true not now ada",
	}
	if diff := cmp.Diff(want, m.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if all := strings.Join(answers, "\n"); strings.Contains(all, "hunter2") {
		t.Errorf("an answer tells the value:\n%s", all)
	}
	if _, err := s.client.SetEnvironment(ctx, tgr.Environment{Repo: "acme/bridge", Name: "prod", Branches: []string{"["}}); tgr.CodeOf(err) != tgr.Invalid {
		t.Errorf("a pattern that is none: %v", err)
	}
}

func TestSettingsAreNotForEverybody(t *testing.T) {
	m := newMemory().fill()
	s := newSite(t, m, func(c *Config) { c.Settings, c.Token = m, "the token" })
	for _, path := range []string{"/api/secrets?repo=a/b", "/api/variables?owner=a", "/api/environments?repo=a/b"} {
		if answer, _ := ask(t, "GET", s.url+path, ""); answer.StatusCode != 401 {
			t.Errorf("GET %s without the token: %d", path, answer.StatusCode)
		}
	}
	bare := newSite(t, newMemory().fill(), nil)
	if answer, _ := ask(t, "GET", bare.url+"/api/secrets?repo=a/b", ""); answer.StatusCode != 404 {
		t.Errorf("a server that keeps none: %d", answer.StatusCode)
	}
}

func TestWaiting(t *testing.T) {
	gated := func(env string) tgr.Job { return tgr.Job{Attempt: 2, Gated: true, Environment: env} }
	run := tgr.Run{Attempt: 2, Status: tgr.InProgress, Approvals: []tgr.Approval{{Attempt: 2, Environment: "a", At: time.Now()}, {Attempt: 1, Environment: "b"}}}
	jobs := []tgr.Job{gated("A"), gated("b"), gated("b"), {Attempt: 2, Environment: "c"}}
	if diff := cmp.Diff([]string{"b"}, Waiting(run, jobs)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	run.Hold = "a fork"
	if diff := cmp.Diff([]string{""}, Waiting(run, jobs)); diff != "" {
		t.Errorf("on hold (-want +got):\n%s", diff)
	}
	run.CancelReason = "rejected"
	if got := Waiting(run, jobs); got != nil {
		t.Errorf("rejected: %q", got)
	}
}

// The page of a run shows what waits, with a button, what was decided, and what is called.
func TestRunPageShowsApprovals(t *testing.T) {
	m := newMemory().fill()
	run := sampleRun()
	run.ID, run.Attempt, run.Hold = 70, 2, `waits for approval: a pull request by <eve>`
	run.Status, run.Conclusion = tgr.Queued, ""
	run.Approvals = []tgr.Approval{{Attempt: 1, Environment: "prod", Approved: true, By: "ada", Comment: "<b>fine"}}
	m.setRun(run)
	m.setJob(tgr.Job{ID: 700, Run: 70, Attempt: 2, Kind: tgr.CallJob, Key: "call", Name: "call", Uses: "./.github/workflows/<x>.yml", Status: tgr.InProgress})
	m.setJob(tgr.Job{ID: 701, Run: 70, Attempt: 2, Kind: tgr.WorkJob, Key: "call/a", Name: "call / a", Status: tgr.Pending, Gated: true, Environment: `"prod"`})
	s := newSite(t, m, nil)
	_, page := ask(t, "GET", s.url+"/runs/70", "")
	for _, want := range []string{
		"waits for approval: a pull request by &lt;eve&gt;", "Nothing of it runs before somebody approves",
		`data-body="{&#34;by&#34;:&#34;the page&#34;}">Approve`, `&#34;reject&#34;:true`,
		"Approved: environment <bdi>prod</bdi>, by <bdi>ada</bdi>", "(attempt 1)", "&lt;b&gt;fine",
		"calls <code><bdi>./.github/workflows/&lt;x&gt;.yml</bdi></code>", "environment <bdi>&#34;prod&#34;</bdi>",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
	run.Hold = ""
	m.setRun(run)
	if _, page = ask(t, "GET", s.url+"/runs/70", ""); !strings.Contains(page, `{&#34;environment&#34;:&#34;\&#34;prod\&#34;&#34;,&#34;by&#34;`) {
		t.Errorf("the page has no button for the environment:\n%s", page)
	}
}
