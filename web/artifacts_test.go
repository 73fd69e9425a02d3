package web

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
)

// shelf is an ArtifactStore in memory: each artifact's bytes are its name.
type shelf []tgr.Artifact

func (s shelf) Artifacts(_ context.Context, run tgr.RunID) ([]tgr.Artifact, error) {
	list := []tgr.Artifact{}
	for _, a := range s {
		if a.Run == run {
			list = append(list, a)
		}
	}
	return list, nil
}

func (s shelf) Artifact(_ context.Context, id int64) (tgr.Artifact, error) {
	for _, a := range s {
		if a.ID == id {
			return a, nil
		}
	}
	return tgr.Artifact{}, tgr.Errorf("artifact.get", tgr.NotFound, "there is no artifact %d", id)
}

func (s shelf) ServeArtifact(w http.ResponseWriter, r *http.Request, id int64) error {
	a, err := s.Artifact(r.Context(), id)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Disposition", "attachment")
	_, err = io.WriteString(w, a.Name)
	return err
}

// TestArtifacts lists and downloads artifacts of runs that the caller may see; of others there are none.
func TestArtifacts(t *testing.T) {
	m := newMemory().fill()
	private := sampleRun()
	private.ID, private.Event.Repo.Private = 8, true
	m.setRun(private)
	ends := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	artifacts := shelf{
		{ID: 1, Run: 7, Attempt: 1, Name: "report", Size: 2048, Expires: ends}, {ID: 2, Run: 7, Attempt: 2, Name: hostile, Size: 5 << 30, Expires: ends},
		{ID: 3, Run: 8, Attempt: 1, Name: "hidden", Size: 1, Expires: ends}, {ID: 4, Run: 999, Name: "of a run that is no more", Expires: ends},
	}
	s := newSite(t, m, func(c *Config) {
		c.Artifacts = artifacts
		c.Token = "secret"
		c.Issuer = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "keys for "+r.URL.Path) })
	})
	open := newSite(t, m, func(c *Config) { c.Artifacts = artifacts })
	auth := []string{"Authorization", "Bearer secret"}

	_, body := ask(t, "GET", s.url+"/api/runs/7/artifacts", "", auth...)
	var list ArtifactList
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Artifacts) != 2 || list.Artifacts[0].Name != "report" {
		t.Errorf("list: %s, %v", body, err)
	}
	_, page := ask(t, "GET", s.url+"/runs/7", "", auth...)
	wellFormed(t, "/runs/7", page)
	for _, want := range []string{`<a href="/api/artifacts/1" download=""><bdi>report</bdi></a>, 2.0 KiB`, `5.0 GiB, attempt 2`} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "<script>") || strings.Contains(page, ">hidden") {
		t.Errorf("the page holds what it must not:\n%s", page)
	}
	for _, tt := range []struct {
		url    string
		header []string
		status int
		body   string
	}{
		{s.url + "/api/artifacts/1", auth, 200, "report"}, {s.url + "/api/artifacts/3", auth, 200, "hidden"},
		{s.url + "/api/artifacts/1", nil, 401, ""}, {s.url + "/api/runs/7/artifacts", nil, 401, ""},
		{s.url + "/api/artifacts/4", auth, 404, ""}, {s.url + "/api/artifacts/5", auth, 404, ""}, {s.url + "/api/artifacts/x", auth, 404, ""},
		{s.url + "/api/artifacts/-1", auth, 404, ""}, {s.url + "/api/runs/9/artifacts", auth, 404, ""},
		{s.url + "/oidc/.well-known/jwks", nil, 200, "keys for /oidc/.well-known/jwks"},
		{open.url + "/oidc/.well-known/jwks", nil, 404, ""},
	} {
		answer, body := ask(t, "GET", tt.url, "", tt.header...)
		if answer.StatusCode != tt.status || tt.body != "" && body != tt.body {
			t.Errorf("%s with %v: %d %.200s, want %d %q", tt.url, tt.header, answer.StatusCode, body, tt.status, tt.body)
		}
	}
	none := newSite(t, m, nil)
	if _, body := ask(t, "GET", none.url+"/api/runs/7/artifacts", ""); strings.Join(strings.Fields(body), "") != `{"artifacts":[]}` {
		t.Errorf("a server without artifacts lists %s", body)
	}
	if answer, _ := ask(t, "GET", none.url+"/api/artifacts/1", ""); answer.StatusCode != 404 {
		t.Errorf("a server without artifacts answers %d", answer.StatusCode)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 1023: "1023 bytes", 1024: "1.0 KiB", 1536 << 10: "1.5 MiB", 1 << 50: "1024.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
