// Package github is everything that knows GitHub: the webhook's door, the source of repositories and actions,
// and the reports that go back as statuses, checks and comments.
package github

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

// DefaultMaxBody is GitHub's own limit of a payload: 25 MiB.
const DefaultMaxBody = 25 << 20

// What the handler says of a webhook: the status of its answer, and the result given to Observe.
const (
	ResultAccepted  = "accepted"
	ResultDuplicate = "duplicate"
	ResultIgnored   = "ignored" // no workflow can be started by that event
	ResultPing      = "ping"
	ResultRefused   = "refused" // malformed, unsigned, too large or too fast: the sender's fault
	ResultFailed    = "failed"  // could not be stored: ours
)

// WebhookConfig is what a WebhookHandler is made of. Secrets and Accept are required.
type WebhookConfig struct {
	tgr.Redacted

	// Secrets are the keys that a payload may be signed with; several, while one replaces another.
	Secrets [][]byte
	// Accept makes the delivery durable and returns its runs; fresh is false for a delivery, or a replay of one, that
	// was accepted before. An error with code Unavailable or Limit makes the sender try again later.
	Accept func(ctx context.Context, d tgr.Delivery) (runs []tgr.RunID, fresh bool, err error)

	Rate    rate.Limit // webhooks per second of one sender's address; 0: 1000
	Burst   int        // of one sender; 0: twice Rate
	MaxBody int64      // bytes; 0: DefaultMaxBody
	Log     *slog.Logger
	// Observe is told of every request; event is "" where none was named or known. nil: nobody is.
	Observe func(event, result string)
	Now     func() time.Time
}

// WebhookHandler is the door for webhooks. Nothing of a request is parsed before its signature was found right.
//
// It answers with {message, status, run_ids}: 202 accepted or ignored, 200 duplicate or ping; 400 malformed, 401 not
// signed, 403 wrongly signed, 405 not POST, 413 too large, 415 encoded otherwise than GitHub does, 429 too fast,
// 500 could not be stored, 503 cannot be stored now. It is safe for concurrent use.
type WebhookHandler struct {
	c       WebhookConfig
	senders *senders
	bodies  *semaphore.Weighted // bytes of bodies that are held at once
}

// Bounds of the handler as a whole.
const (
	maxHeldBodies = 16     // of the largest size, or as many more smaller ones
	maxSenders    = 10_000 // addresses whose rate is remembered
	bodyTimeout   = 30 * time.Second
)

// NewWebhookHandler refuses a configuration without a secret, or with an empty one.
func NewWebhookHandler(c WebhookConfig) (*WebhookHandler, error) {
	if len(c.Secrets) == 0 {
		return nil, tgr.Errorf("webhook.new", tgr.Invalid, "a webhook secret is required")
	}
	for i, s := range c.Secrets {
		if len(s) == 0 {
			return nil, tgr.Errorf("webhook.new", tgr.Invalid, "webhook secret %d of %d is empty", i+1, len(c.Secrets))
		}
	}
	if c.Accept == nil {
		return nil, tgr.Errorf("webhook.new", tgr.Invalid, "nothing accepts the webhooks")
	}
	if c.Rate <= 0 {
		c.Rate = 1000
	}
	if c.Burst <= 0 {
		c.Burst = int(math.Ceil(2 * min(float64(c.Rate), 1e6)))
	}
	if c.MaxBody <= 0 {
		c.MaxBody = DefaultMaxBody
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Observe == nil {
		c.Observe = func(string, string) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &WebhookHandler{
		c:       c,
		senders: newSenders(maxSenders, c.Rate, c.Burst),
		bodies:  semaphore.NewWeighted(maxHeldBodies * c.MaxBody),
	}, nil
}

// answer is what the sender gets.
type answer struct {
	Message string      `json:"message"`
	Status  string      `json:"status"`
	RunIDs  []tgr.RunID `json:"run_ids"`

	code  int
	retry time.Duration // > 0: Retry-After
	event string        // for Observe
}

func refuse(code int, message string) *answer {
	return &answer{Message: message, Status: ResultRefused, code: code}
}

// ServeHTTP receives one webhook.
func (h *WebhookHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		h.reply(w, r, refuse(http.StatusMethodNotAllowed, "webhooks are sent with POST"))
		return
	}
	h.reply(w, r, h.receive(w, r))
}

func (h *WebhookHandler) reply(w http.ResponseWriter, r *http.Request, a *answer) {
	h.c.Observe(a.event, a.Status)
	level := slog.LevelInfo
	if a.Status == ResultRefused || a.Status == ResultFailed {
		level = slog.LevelWarn
	}
	h.c.Log.Log(r.Context(), level, "webhook", "event", a.event, "delivery", clip(r.Header.Get("X-GitHub-Delivery"), 64),
		"result", a.Status, "code", a.code, "message", a.Message, "runs", a.RunIDs, "sender", r.RemoteAddr)
	if a.RunIDs == nil {
		a.RunIDs = []tgr.RunID{}
	}
	if a.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(a.retry.Seconds()))))
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(a.code)
	json.NewEncoder(w).Encode(a) // the sender may be gone; nothing to do then
}

// receive takes a request as far as it is right; the order of the checks is from cheap to dear.
func (h *WebhookHandler) receive(w http.ResponseWriter, r *http.Request) *answer {
	if wait := h.senders.take(senderOf(r), h.c.Now()); wait > 0 {
		a := refuse(http.StatusTooManyRequests, "too many webhooks from this address")
		a.retry = wait
		return a
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" {
		return refuse(http.StatusUnsupportedMediaType, "the body must not be encoded; GitHub does not compress webhooks")
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/json" && media != "application/x-www-form-urlencoded" {
		return refuse(http.StatusUnsupportedMediaType, "Content-Type must be application/json or application/x-www-form-urlencoded")
	}
	mac, ok := signature(r.Header)
	if !ok {
		return refuse(http.StatusUnauthorized, "X-Hub-Signature-256 is missing or malformed")
	}
	body, release, a := h.read(w, r)
	if a != nil {
		return a
	}
	defer release()
	if !h.signed(mac, body) {
		return refuse(http.StatusForbidden, "the signature is wrong: is the secret the same on both sides?")
	}
	return h.handle(r, media, body)
}

// read returns the whole body. The memory of all bodies at once is bounded; release gives this one's back.
func (h *WebhookHandler) read(w http.ResponseWriter, r *http.Request) (body []byte, release func(), a *answer) {
	size := h.c.MaxBody
	if r.ContentLength > size {
		return nil, nil, refuse(http.StatusRequestEntityTooLarge, "the payload is larger than "+strconv.FormatInt(size, 10)+" bytes")
	}
	if r.ContentLength >= 0 {
		size = r.ContentLength
	}
	if !h.bodies.TryAcquire(size) {
		return nil, nil, &answer{Message: "too many webhooks at once", Status: ResultFailed, code: http.StatusServiceUnavailable, retry: 5 * time.Second}
	}
	release = func() { h.bodies.Release(size) }
	// A slow sender is cut off; where the connection cannot be given a deadline, the server's own holds.
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		h.c.Log.Warn("set a read deadline", "error", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.c.MaxBody))
	if err == nil {
		return body, release, nil
	}
	release()
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, nil, refuse(http.StatusRequestEntityTooLarge, "the payload is larger than "+strconv.FormatInt(h.c.MaxBody, 10)+" bytes")
	}
	return nil, nil, refuse(http.StatusBadRequest, "the body could not be read to its end")
}

// handle is given a body whose signature is right.
func (h *WebhookHandler) handle(r *http.Request, media string, body []byte) *answer {
	id := r.Header.Get("X-GitHub-Delivery")
	event := r.Header.Get("X-GitHub-Event")
	switch {
	case !deliveryPattern().MatchString(id):
		return refuse(http.StatusBadRequest, "X-GitHub-Delivery is missing or malformed")
	case !namePattern().MatchString(event):
		return refuse(http.StatusBadRequest, "X-GitHub-Event is missing or malformed")
	}
	if media == "application/x-www-form-urlencoded" {
		var err error
		if body, err = formPayload(body); err != nil {
			return refuse(http.StatusBadRequest, err.Error())
		}
	}
	if event == "pull_request_target" || event == "schedule" {
		// The header is not signed: somebody else's pull_request would pass for what is trusted.
		return refuse(http.StatusBadRequest, "GitHub sends no webhook of the event "+event)
	}
	if !Triggers(event) && event != "ping" {
		if !knownEvent(event) {
			event = "unknown" // names of a sender's choice would make metrics grow without bound
		}
		return &answer{Message: "no workflow is started by this event", Status: ResultIgnored, code: http.StatusAccepted, event: event}
	}
	ev, err := Decode(event, body)
	if err != nil {
		a := refuse(http.StatusBadRequest, tgr.MessageOf(err))
		a.event = event
		return a
	}
	if event == "ping" {
		return &answer{Message: "pong", Status: ResultPing, code: http.StatusOK, event: event}
	}
	return h.accept(r.Context(), tgr.Delivery{
		ID: tgr.DeliveryID(id), Event: ev, BodyHash: bodyHash(body), Received: h.c.Now(),
	})
}

func (h *WebhookHandler) accept(ctx context.Context, d tgr.Delivery) *answer {
	runs, fresh, err := h.c.Accept(ctx, d)
	a := &answer{RunIDs: runs, event: d.Event.Name}
	switch code := tgr.CodeOf(err); {
	case err == nil && fresh:
		a.code, a.Status, a.Message = http.StatusAccepted, ResultAccepted, d.Event.Name+" of "+d.Event.Repo.FullName+" accepted"
	case err == nil:
		a.code, a.Status, a.Message = http.StatusOK, ResultDuplicate, "this webhook was accepted before"
	case code == tgr.Invalid:
		a.code, a.Status, a.Message = http.StatusBadRequest, ResultRefused, tgr.MessageOf(err)
	case code == tgr.Unavailable || code == tgr.Limit || ctx.Err() != nil:
		a.code, a.Status, a.Message, a.retry = http.StatusServiceUnavailable, ResultFailed, tgr.MessageOf(err), 30*time.Second
	default:
		a.code, a.Status, a.Message = http.StatusInternalServerError, ResultFailed, "the webhook could not be stored"
	}
	if err != nil {
		h.c.Log.Error("accept a webhook", "event", d.Event.Name, "delivery", d.ID, "error", err)
	}
	return a
}

// signature reads the X-Hub-Signature-256 header; the SHA-1 header of old is not looked at.
func signature(header http.Header) (mac []byte, ok bool) {
	values := header.Values("X-Hub-Signature-256")
	if len(values) != 1 {
		return nil, false
	}
	digits, ok := strings.CutPrefix(values[0], "sha256=")
	if !ok || len(digits) != hex.EncodedLen(sha256.Size) {
		return nil, false
	}
	mac, err := hex.DecodeString(digits)
	return mac, err == nil
}

// signed tries every secret, whichever fits, so that the time taken does not tell which did.
func (h *WebhookHandler) signed(mac, body []byte) bool {
	ok := false
	for _, secret := range h.c.Secrets {
		m := hmac.New(sha256.New, secret)
		m.Write(body)
		if hmac.Equal(m.Sum(nil), mac) {
			ok = true
		}
	}
	return ok
}

// Sign returns the X-Hub-Signature-256 header for a body, as GitHub makes it.
func Sign(secret, body []byte) string {
	m := hmac.New(sha256.New, secret)
	m.Write(body)
	return "sha256=" + hex.EncodeToString(m.Sum(nil))
}

// bodyHash finds a replay of the same payload under another delivery id or as another event: no signature covers these.
func bodyHash(payload []byte) string {
	sum := sha256.Sum256(payload)
	return hex.EncodeToString(sum[:])
}

// formPayload returns the one payload field of a form. It does not build a map of all fields: the body is large.
func formPayload(body []byte) ([]byte, error) {
	payload, found := "", false
	for field := range strings.SplitSeq(string(body), "&") {
		value, ok := strings.CutPrefix(field, "payload=")
		if !ok {
			continue
		}
		if found {
			return nil, errors.New("the form has two payload fields")
		}
		var err error
		if payload, err = url.QueryUnescape(value); err != nil {
			return nil, errors.New("the payload field is not encoded as a form's")
		}
		found = true
	}
	if !found {
		return nil, errors.New("the form has no payload field")
	}
	return []byte(payload), nil
}

// knownEvent reports whether GitHub sends events of that name which start no workflow.
func knownEvent(name string) bool {
	switch name {
	case "installation", "installation_repositories", "installation_target", "workflow_job", "member", "membership",
		"meta", "organization", "repository", "star", "team", "team_add", "security_advisory", "deploy_key",
		"github_app_authorization", "pull_request_review_thread", "commit_comment", "repository_import":
		return true
	}
	return false
}
