package web

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
)

const cancelPath = "/api/runs/7/cancel"

// knock sends a request as if from a peer and returns its status.
func knock(t *testing.T, s *Server, method, path, peer, host string, header ...string) (int, string) {
	t.Helper()
	body := ""
	if method == "POST" {
		body = "{}"
	}
	r := httptest.NewRequest(method, "http://"+host+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.RemoteAddr = peer
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestWithoutToken(t *testing.T) {
	m := newMemory().fill()
	s, err := New(Config{Runs: m, Logs: m, Control: m})
	if err != nil {
		t.Fatal(err)
	}
	const here, there = "127.0.0.1:9999", "192.0.2.7:9999"
	for _, tc := range []struct {
		name, method, path, peer, host string
		header                         []string
		want                           int
	}{
		{"local", "POST", cancelPath, here, "127.0.0.1:3000", nil, 202},
		{"local by name", "POST", cancelPath, here, "localhost:3000", nil, 202},
		{"local over IPv6", "POST", cancelPath, "[::1]:9999", "[::1]:3000", nil, 202},
		{"local, mapped", "POST", cancelPath, "[::ffff:127.0.0.1]:9999", "127.0.0.1", nil, 202},
		{"own page", "POST", cancelPath, here, "127.0.0.1:3000", []string{"Origin", "http://127.0.0.1:3000"}, 202},
		{"own page, new browser", "POST", cancelPath, here, "localhost:3000", []string{"Origin", "http://localhost:3000", "Sec-Fetch-Site", "same-origin"}, 202},

		{"remote", "POST", cancelPath, there, "ci.example.com", nil, 403},
		{"remote claims to be local", "POST", cancelPath, there, "127.0.0.1:3000", []string{"X-Forwarded-For", "127.0.0.1"}, 403},
		{"no peer", "POST", cancelPath, "@", "localhost", nil, 403},
		{"remote rerun", "POST", "/api/runs/7/rerun", there, "localhost", nil, 403},
		{"remote dispatch", "POST", "/api/dispatch", there, "localhost", nil, 403},
		{"rebound name", "POST", cancelPath, here, "evil.example.com:3000", nil, 403},
		{"rebound name, own origin", "POST", cancelPath, here, "evil.example.com", []string{"Origin", "http://evil.example.com", "Sec-Fetch-Site", "same-origin"}, 403},
		{"name that looks local", "POST", cancelPath, here, "127.0.0.1.evil.example.com", nil, 403},
		{"other origin", "POST", cancelPath, here, "127.0.0.1:3000", []string{"Origin", "https://evil.example.com"}, 403},
		{"other port", "POST", cancelPath, here, "127.0.0.1:3000", []string{"Origin", "http://127.0.0.1:8080"}, 403},
		{"null origin", "POST", cancelPath, here, "127.0.0.1:3000", []string{"Origin", "null"}, 403},
		{"cross site, new browser", "POST", cancelPath, here, "127.0.0.1:3000", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"same site, new browser", "POST", cancelPath, here, "127.0.0.1:3000", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"through a proxy", "POST", cancelPath, here, "127.0.0.1:3000", []string{"X-Forwarded-For", "192.0.2.7"}, 403},
		{"a form", "POST", cancelPath, here, "127.0.0.1:3000", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415},

		{"remote read", "GET", "/api/runs/7", there, "ci.example.com", nil, 200},
		{"remote page", "GET", "/", there, "ci.example.com", nil, 200},
		{"rebound read", "GET", "/api/runs/7", here, "evil.example.com", nil, 403},
		{"rebound page", "GET", "/jobs/70", here, "evil.example.com", nil, 403},
		{"health through a proxy", "GET", "/healthz", here, "ci.example.com", []string{"X-Forwarded-For", "192.0.2.7"}, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, body := knock(t, s, tc.method, tc.path, tc.peer, tc.host, tc.header...); got != tc.want {
				t.Errorf("%d, want %d: %s", got, tc.want, body)
			}
		})
	}
	if len(m.calls) != 6 {
		t.Errorf("the controller was called %d times, want 6: %q", len(m.calls), m.calls)
	}
}

func TestPrivateRunsLookLikeNone(t *testing.T) {
	m := newMemory().fill()
	private := sampleRun()
	private.ID, private.Event.Repo.Private, private.Title = 8, true, "hidden"
	m.setRun(private)
	job := sampleJobs()[0]
	job.ID, job.Run, job.Name = 80, 8, "hidden"
	m.setJob(job)
	m.append(80, 1, sampleLog()...)
	m.closeLog(80, 1)
	s, err := New(Config{Runs: m, Logs: m, Control: m, Artifacts: shelf{{ID: 80, Run: 8, Name: "hidden"}}})
	if err != nil {
		t.Fatal(err)
	}
	const there = "192.0.2.7:9999"
	for hidden, missing := range map[string]string{
		"/api/runs/8": "/api/runs/9", "/api/runs/8/plan": "/api/runs/9/plan", "/api/runs/8/events": "/api/runs/9/events",
		"/api/jobs/80": "/api/jobs/90", "/api/jobs/80/log": "/api/jobs/90/log", "/api/jobs/80/log/stream": "/api/jobs/90/log/stream",
		"/runs/8": "/runs/9", "/jobs/80": "/jobs/90", "/api/runs/8/artifacts": "/api/runs/9/artifacts", "/api/artifacts/80": "/api/artifacts/90",
	} {
		status, body := knock(t, s, "GET", hidden, there, "ci.example.com")
		none, nobody := knock(t, s, "GET", missing, there, "ci.example.com")
		swap := strings.NewReplacer("run 9", "run 8", "job 90", "job 80", "artifact 90", "artifact 80")
		if status != 404 || none != 404 || body != swap.Replace(nobody) {
			t.Errorf("%s: %d %s\n%s: %d %s", hidden, status, body, missing, none, nobody)
		}
		if local, _ := knock(t, s, "GET", hidden, "127.0.0.1:1", "localhost"); local != 200 {
			t.Errorf("%s: %d on this machine", hidden, local)
		}
	}
	for _, list := range []string{"/", "/api/runs"} {
		if _, body := knock(t, s, "GET", list, there, "ci.example.com"); strings.Contains(strings.ReplaceAll(body, "aria-hidden", ""), "hidden") || !strings.Contains(body, "Mend the bridge") {
			t.Errorf("%s: %s", list, body)
		}
		if _, body := knock(t, s, "GET", list, "127.0.0.1:1", "localhost"); !strings.Contains(strings.ReplaceAll(body, "aria-hidden", ""), "hidden") {
			t.Errorf("%s on this machine lacks the private run", list)
		}
	}
}

func TestWithToken(t *testing.T) {
	m := newMemory().fill()
	s, err := New(Config{Runs: m, Logs: m, Control: m, Token: "s3cret"})
	if err != nil {
		t.Fatal(err)
	}
	basic := func(password string) string {
		r := &http.Request{Header: http.Header{}}
		r.SetBasicAuth("anyone", password)
		return r.Header.Get("Authorization")
	}
	const there = "192.0.2.7:9999"
	for _, tc := range []struct {
		name, method, path, authorization, origin string
		want                                      int
	}{
		{"bearer", "POST", cancelPath, "Bearer s3cret", "", 202},
		{"bearer, lower case", "GET", "/api/runs", "bearer s3cret", "", 200},
		{"bearer from elsewhere", "POST", cancelPath, "Bearer s3cret", "https://tool.example.com", 202},
		{"basic on a page", "GET", "/runs/7", basic("s3cret"), "", 200},
		{"basic from the own page", "POST", cancelPath, basic("s3cret"), "http://ci.example.com", 202},
		{"basic from another page", "POST", cancelPath, basic("s3cret"), "https://evil.example.com", 403},
		{"nothing", "GET", "/api/runs", "", "", 401},
		{"nothing, on a page", "GET", "/", "", "", 401},
		{"nothing, for the document", "GET", "/api/openapi.json", "", "", 401},
		{"wrong", "GET", "/api/runs", "Bearer s3cre", "", 401},
		{"wrong basic", "GET", "/api/runs", basic("s3cret2"), "", 401},
		{"empty bearer", "GET", "/api/runs", "Bearer ", "", 401},
		{"other scheme", "GET", "/api/runs", "Token s3cret", "", 401},
		{"metrics are open", "GET", "/metrics", "", "", 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var header []string
			if tc.authorization != "" {
				header = append(header, "Authorization", tc.authorization)
			}
			if tc.origin != "" {
				header = append(header, "Origin", tc.origin)
			}
			if got, body := knock(t, s, tc.method, tc.path, there, "ci.example.com", header...); got != tc.want {
				t.Errorf("%d, want %d: %s", got, tc.want, body)
			}
			// A local peer has no advantage.
			if got, _ := knock(t, s, tc.method, tc.path, "127.0.0.1:1", "ci.example.com", header...); got != tc.want {
				t.Errorf("%d from this machine, want %d", got, tc.want)
			}
		})
	}
	site := newSite(t, m, func(c *Config) { c.Token = "s3cret" })
	if _, err := site.client.Runs(t.Context(), Filter{}); err != nil {
		t.Errorf("the client with the token: %v", err)
	}
	stranger, err := NewClient(site.url, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Runs(t.Context(), Filter{}); tgr.CodeOf(err) != tgr.Unauthorized {
		t.Errorf("the client without the token: %v", err)
	}
}
