package results

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// issuer serves what a verifier reads, and verifies as one: by the address in the token alone.
type issuer struct {
	t      *testing.T
	server *httptest.Server
}

func newIssuer(t *testing.T, dir string, now func() time.Time) (*Service, *issuer) {
	t.Helper()
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s := opened(t, Config{Dir: dir, Issuer: server.URL + "/oidc", Now: now})
	mux.Handle("/oidc/", http.StripPrefix("/oidc", s.Issuer()))
	return s, &issuer{t, server}
}

func (i *issuer) get(url string, v any) {
	i.t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil || resp.StatusCode != 200 {
		i.t.Fatalf("%s: %d, %v", url, resp.StatusCode, err)
	}
}

func (i *issuer) keys() jose.JSONWebKeySet {
	i.t.Helper()
	var about struct {
		Issuer, Jwks_uri string
		Algorithms       []string `json:"id_token_signing_alg_values_supported"`
	}
	i.get(i.server.URL+"/oidc/.well-known/openid-configuration", &about)
	if about.Issuer != i.server.URL+"/oidc" || !cmp.Equal(about.Algorithms, []string{"RS256"}) {
		i.t.Errorf("discovery: %+v", about)
	}
	var set jose.JSONWebKeySet
	i.get(about.Jwks_uri, &set)
	return set
}

// verify checks a token as a cloud provider does, and returns its claims.
func (i *issuer) verify(token string, now time.Time) (jwt.MapClaims, error) {
	set, claims := i.keys(), jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(token, &claims, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		found := set.Key(kid)
		if len(found) != 1 {
			return nil, jwt.ErrTokenUnverifiable
		}
		return found[0].Key, nil
	}, jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(i.server.URL+"/oidc"), jwt.WithAudience("sts.example.com"), jwt.WithTimeFunc(func() time.Time { return now }))
	return claims, err
}

// identityToken asks as @actions/core does.
func (c *client) identityToken(audience string) response {
	c.t.Helper()
	return c.do("GET", c.env["ACTIONS_ID_TOKEN_REQUEST_URL"]+"&audience="+audience, nil, "Authorization", "bearer "+c.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"])
}

// TestIdentity verifies a token with what the issuer publishes, and compares the claims with GitHub's.
func TestIdentity(t *testing.T) {
	now := newClock()
	s, i := newIssuer(t, "", now.Now)
	c := began(t, s, jobOn(1, "main"))
	claims, err := i.verify(c.want(200, c.identityToken("sts.example.com")).field("value"), now.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"jti", "iat", "nbf", "exp"} {
		if claims[name] == nil {
			t.Errorf("there is no claim %s", name)
		}
		delete(claims, name)
	}
	sha := strings.Repeat("a", 40)
	want := jwt.MapClaims{
		"iss": i.server.URL + "/oidc", "aud": "sts.example.com", "sub": "repo:o/r:ref:refs/heads/main", "ref": "refs/heads/main", "ref_type": "branch",
		"ref_protected": "false", "sha": sha, "base_ref": "", "head_ref": "", "repository": "o/r", "repository_id": "7", "repository_owner": "o",
		"repository_owner_id": "42", "repository_visibility": "public", "actor": "octocat", "actor_id": "1", "run_id": "101", "run_number": "3",
		"run_attempt": "1", "event_name": "push", "workflow": "CI", "workflow_ref": "o/r/.github/workflows/ci.yml@refs/heads/main", "workflow_sha": sha,
		"job_workflow_ref": "o/r/.github/workflows/ci.yml@refs/heads/main", "job_workflow_sha": sha, "runner_environment": "self-hosted",
	}
	if diff := cmp.Diff(want, claims); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if _, err := i.verify(c.identityToken("sts.example.com").field("value"), now.Now().Add(identityFor+time.Second)); err == nil {
		t.Error("a token is good after it has expired")
	}
	if _, err := i.verify(c.identityToken("other").field("value"), now.Now()); err == nil {
		t.Error("a token for somebody else is good")
	}
	c.want(400, c.identityToken(strings.Repeat("x", maxAudience+1)))
}

// TestIdentitySubject: what verifiers go by cannot be made up by who names an environment.
func TestIdentitySubject(t *testing.T) {
	pull, target, tag, env, evil := pullOn(1, 3, false), pullOn(1, 3, false), jobOn(1, ""), jobOn(1, "main"), jobOn(1, "main")
	target.Run.Event.Name, target.Run.Event.Ref = "pull_request_target", "refs/heads/main"
	tag.Run.Event.Ref = "refs/tags/v1"
	env.Environment, evil.Environment = "Production", "x:ref:refs/heads/main"
	s, _ := newIssuer(t, "", time.Now)
	for _, tt := range []struct {
		job  Job
		want string
	}{
		{pull, "repo:o/r:pull_request"}, {target, "repo:o/r:ref:refs/heads/main"}, {tag, "repo:o/r:ref:refs/tags/v1"},
		{env, "repo:o/r:environment:Production"}, {evil, "repo:o/r:environment:x%3Aref%3Arefs/heads/main"},
	} {
		x, err := s.Begin(t.Context(), tt.job)
		if err != nil {
			t.Fatal(err)
		}
		if got := x.subject(); got != tt.want {
			t.Errorf("subject %q, want %q", got, tt.want)
		}
	}
}

// A job without the permission, and a server without an address, have no identity tokens and no variables for them.
func TestIdentityWithout(t *testing.T) {
	s, i := newIssuer(t, "", time.Now)
	without := jobOn(1, "main")
	without.IDToken = false
	nowhere := opened(t, Config{})
	for name, c := range map[string]*client{"no permission": began(t, s, without), "no issuer": began(t, nowhere, jobOn(2, "main"))} {
		if c.env["ACTIONS_ID_TOKEN_REQUEST_URL"]+c.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] != "" {
			t.Errorf("%s: the variables are there", name)
		}
		token, err := c.x.token(forIdentity) // as if somebody had made one
		if err != nil {
			t.Fatal(err)
		}
		r := c.do("GET", c.base+"/oidc/token?api-version=2.0&audience=x", nil, "Authorization", "bearer "+token)
		c.want(401, r)
	}
	w := httptest.NewRecorder()
	if nowhere.Issuer().ServeHTTP(w, httptest.NewRequest("GET", "/.well-known/jwks", nil)); w.Code != 404 {
		t.Errorf("keys without an issuer: %d", w.Code)
	}
	if len(i.keys().Keys) != 1 {
		t.Error("an issuer publishes one key before its first token")
	}
}

// TestKeyRotation: a new key is published before it signs, the old one after it did, and tokens stay good over a restart.
func TestKeyRotation(t *testing.T) {
	now := newClock()
	dir := t.TempDir()
	s, i := newIssuer(t, dir, now.Now)
	c := began(t, s, jobOn(1, "main"))
	kid := func() string {
		t.Helper()
		token := c.want(200, c.identityToken("sts.example.com")).field("value")
		if _, err := i.verify(token, now.Now()); err != nil {
			t.Fatal(err)
		}
		parsed, _, err := jwt.NewParser().ParseUnverified(token, jwt.MapClaims{})
		if err != nil {
			t.Fatal(err)
		}
		return parsed.Header["kid"].(string)
	}
	sweep := func(after time.Duration) {
		t.Helper()
		now.add(after)
		if err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		c = began(t, s, jobOn(1, "main")) // the job's own token has its time
	}
	first := kid()
	sweep(keyFor - time.Hour)
	if got := len(i.keys().Keys); got != 1 {
		t.Errorf("%d keys before their time", got)
	}
	sweep(2 * time.Hour)
	if got := len(i.keys().Keys); got != 2 || kid() != first {
		t.Errorf("%d keys, want the next one published and the first one signing", got)
	}
	sweep(keyAhead)
	second := kid()
	if second == first || len(i.keys().Keys) != 2 {
		t.Error("want the second one signing and the first one published")
	}
	sweep(keyPublished + time.Hour)
	if len(i.keys().Keys) != 1 || kid() != second {
		t.Error("want the second one alone")
	}
	found, err := filepath.Glob(filepath.Join(dir, "keys", "*"))
	if err != nil || len(found) != 2 {
		t.Errorf("files %v, %v, want a key and the secret", found, err)
	}
	for _, path := range found {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
}

// TestKeyFiles: what is no key stops the start and names the file.
func TestKeyFiles(t *testing.T) {
	for name, content := range map[string]string{
		"secret": "short", "20260101T000000Z-a.pem": "no PEM", "20260101T000000Z-b.pem": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "new.pem": "x",
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "keys", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), Config{Dir: dir})
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTokenClaims is what clients read in a job's token.
func TestTokenClaims(t *testing.T) {
	s := opened(t, Config{})
	for _, tt := range []struct {
		job      Job
		scp, ac  string
		denied   bool
		identity tgr.JobID
	}{
		{job: jobOn(1, "topic"), scp: "Actions.Results:101-1:1", ac: `[{"Scope":"refs/heads/topic","Permission":3},{"Scope":"refs/heads/main","Permission":1}]`},
		{job: pullOn(2, 5, true), scp: "Actions.Results:102-1:2", ac: `[{"Scope":"refs/pull/5/merge","Permission":3},{"Scope":"refs/heads/main","Permission":1}]`},
	} {
		x, err := s.Begin(t.Context(), tt.job)
		if err != nil {
			t.Fatal(err)
		}
		token, err := x.token(forRuntime)
		if err != nil {
			t.Fatal(err)
		}
		claims := jwt.MapClaims{}
		if _, _, err := jwt.NewParser().ParseUnverified(token, claims); err != nil {
			t.Fatal(err)
		}
		if claims["scp"] != tt.scp || claims["ac"] != tt.ac || strings.Contains(token, tt.job.Lease) {
			t.Errorf("claims %v, want %s and %s", claims, tt.scp, tt.ac)
		}
		// BuildKit's client wants both, and goes by the clock of the job.
		from, err1 := claims.GetNotBefore()
		until, err2 := claims.GetExpirationTime()
		if err1 != nil || err2 != nil || from == nil || until == nil || time.Since(from.Time) < tokenSkew || time.Until(until.Time) < tokenFor-time.Minute {
			t.Errorf("the token counts from %v to %v: %v, %v", from, until, err1, err2)
		}
	}
}
