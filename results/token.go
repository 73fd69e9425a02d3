package results

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/terraphim/tgr"
)

// What a token is for.
const (
	forRuntime  = "runtime"  // caches and artifacts
	forIdentity = "identity" // asking for an identity token
)

// tokenFor bounds a job's tokens, which end with the job: GitHub's self-hosted jobs may take five days.
const tokenFor = 5 * 24 * time.Hour

// tokenSkew is how much earlier than the server's a job's clock may be: some clients look when a token begins to count.
const tokenSkew = 5 * time.Minute

// jobClaims is what a job's token says. Scp is read by the artifact client, AC by cache clients that are not GitHub's:
// BuildKit's also refuses a token that does not say from when on it counts.
type jobClaims struct {
	jwt.RegisteredClaims
	boundClaims
}

// boundClaims is all but the times.
type boundClaims struct {
	Scp     string `json:"scp,omitempty"`
	AC      string `json:"ac,omitempty"`
	Use     string `json:"use"`
	Repo    string `json:"repo"`
	Run     int64  `json:"run"`
	Attempt int    `json:"attempt"`
	Job     int64  `json:"job"`
	Trusted bool   `json:"trusted"`
	Lease   string `json:"lease"` // a hash of it
}

// try tells this try of the job from others, without its secret.
func (x *Session) try() string {
	sum := sha256.Sum256([]byte("lease " + x.job.Lease))
	return hex.EncodeToString(sum[:16])
}

// claims is what a token of this session says, but for its times.
func (x *Session) claims(use string) boundClaims {
	c := boundClaims{
		Use: use, Repo: x.job.repo(), Run: int64(x.job.Run.ID), Attempt: x.job.Run.Attempt, Job: int64(x.job.ID),
		Trusted: x.access.trusted, Lease: x.try(),
	}
	if use == forRuntime {
		c.Scp = "Actions.Results:" + x.runID() + ":" + x.job.ID.String()
		c.AC = x.access.claim()
	}
	return c
}

// runID is workflow_run_backend_id: of one attempt of a run.
func (x *Session) runID() string {
	return x.job.Run.ID.String() + "-" + strconv.Itoa(x.job.Run.Attempt)
}

// claim is the scopes with their permissions, 1 to read and 2 to write, in the form in which GitHub's tokens have them.
func (a *access) claim() string {
	type grant struct {
		Scope      string
		Permission int
	}
	var grants []grant
	for i, s := range a.scopes {
		g := grant{Scope: s.ref}
		if a.read {
			g.Permission |= 1
		}
		if i == 0 && a.denied == "" {
			g.Permission |= 2
		}
		grants = append(grants, g)
	}
	b, err := json.Marshal(grants)
	if err != nil {
		return "[]" // strings and numbers: it cannot fail
	}
	return string(b)
}

// token makes a token of the session.
func (x *Session) token(use string) (string, error) {
	now := x.s.cfg.Now()
	c := jobClaims{boundClaims: x.claims(use)}
	c.IssuedAt, c.NotBefore, c.ExpiresAt = jwt.NewNumericDate(now), jwt.NewNumericDate(now.Add(-tokenSkew)), jwt.NewNumericDate(now.Add(tokenFor))
	return jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString(x.s.keys.secret)
}

// authorize checks that a request has the token of this job.
func (x *Session) authorize(r *http.Request, use string) error {
	kind, text, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(kind, "Bearer") || text == "" || len(text) > 8<<10 {
		return tgr.Errorf("results.authorize", tgr.Unauthorized, "the request has no bearer token")
	}
	var got jobClaims
	_, err := jwt.ParseWithClaims(text, &got, func(*jwt.Token) (any, error) { return x.s.keys.secret, nil },
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired(), jwt.WithTimeFunc(x.s.cfg.Now))
	if err != nil {
		return &tgr.Error{Op: "results.authorize", Code: tgr.Unauthorized, Message: "the token is not one of ours, or has expired", Err: err}
	}
	if got.boundClaims != x.claims(use) {
		return tgr.Errorf("results.authorize", tgr.Unauthorized, "the token is another job's")
	}
	return nil
}

// Operations that an address may be signed for.
const (
	toRead  = "r"
	toWrite = "w"
)

// address is the signed address of a blob: who has it may do this one thing until it expires, over this job's link.
func (x *Session) address(r *http.Request, id int64, op string) string {
	expires := strconv.FormatInt(x.s.cfg.Now().Add(urlsFor).Unix(), 10)
	q := url.Values{"op": {op}, "se": {expires}, "sig": {x.sign(strconv.FormatInt(id, 10), op, expires)}}
	u := url.URL{Scheme: "http", Host: r.Host, Path: "/blob/" + strconv.FormatInt(id, 10), RawQuery: q.Encode()}
	return u.String()
}

// sign covers every field with its length, and the job: no two different sets of fields have one text.
func (x *Session) sign(fields ...string) string {
	c := x.claims("address")
	mac := hmac.New(sha256.New, x.s.keys.secret)
	for _, f := range append([]string{"blob address", c.Repo, strconv.FormatInt(c.Run, 10), strconv.FormatInt(c.Job, 10), c.Lease}, fields...) {
		mac.Write([]byte(strconv.Itoa(len(f)) + ":" + f))
	}
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// addressed checks the signed address of a request and returns the blob's id.
func (x *Session) addressed(r *http.Request, op string) (int64, error) {
	refused := func(why string) error {
		return tgr.Errorf("results.blob", tgr.Unauthorized, "the address is not valid: %s", why)
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return 0, refused("it cannot be read")
	}
	for _, name := range []string{"op", "se", "sig"} {
		if len(q[name]) != 1 {
			return 0, refused("it lacks " + name + ", or has it twice")
		}
	}
	id := r.PathValue("id")
	if !hmac.Equal([]byte(q.Get("sig")), []byte(x.sign(id, q.Get("op"), q.Get("se")))) {
		return 0, refused("its signature does not fit")
	}
	if q.Get("op") != op {
		return 0, refused("it is for something else")
	}
	expires, err1 := strconv.ParseInt(q.Get("se"), 10, 64)
	n, err2 := strconv.ParseInt(id, 10, 64)
	if errors.Join(err1, err2) != nil || x.s.cfg.Now().Unix() > expires {
		return 0, refused("it has expired")
	}
	return n, nil
}
