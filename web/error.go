package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/terraphim/tgr"
)

// statuses is the one table from codes to HTTP statuses. Nothing writes to it.
var statuses = map[tgr.Code]int{
	tgr.Invalid:      http.StatusBadRequest,
	tgr.Unauthorized: http.StatusUnauthorized,
	tgr.NotFound:     http.StatusNotFound,
	tgr.Conflict:     http.StatusConflict,
	tgr.Workflow:     http.StatusUnprocessableEntity,
	tgr.Unavailable:  http.StatusServiceUnavailable,
	tgr.Limit:        http.StatusTooManyRequests,
	tgr.Internal:     http.StatusInternalServerError,
}

// Status is the HTTP status of a code: 500 for one that is unknown.
func Status(code tgr.Code) int {
	if s, ok := statuses[code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// ErrorBody is the JSON of every error of the API.
type ErrorBody struct {
	Error ErrorDetail `json:"error"`
}

// ErrorDetail is what a caller may know of an error.
type ErrorDetail struct {
	Code    tgr.Code `json:"code"`
	Message string   `json:"message"`
}

// refusal is an error whose status is not that of its code: a request that no credentials would mend (403),
// or a method that a path does not have (405).
type refusal struct {
	status int
	err    *tgr.Error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func forbid(format string, args ...any) error {
	return &refusal{http.StatusForbidden, tgr.Errorf("web", tgr.Unauthorized, format, args...)}
}

func invalid(format string, args ...any) error {
	return tgr.Errorf("web", tgr.Invalid, format, args...)
}

// statusOf is the HTTP status with which err is answered.
func statusOf(err error) int {
	var r *refusal
	if errors.As(err, &r) {
		return r.status
	}
	return Status(tgr.CodeOf(err))
}

// fail answers a request of the API with an error. What only the operator may know goes to the log.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := s.note(w, r, err)
	s.json(w, r, status, ErrorBody{ErrorDetail{Code: tgr.CodeOf(err), Message: tgr.MessageOf(err)}})
}

// note logs the errors that are ours, sets the headers that go with err, and returns its status.
func (s *Server) note(w http.ResponseWriter, r *http.Request, err error) int {
	status := statusOf(err)
	gone := r.Context().Err() != nil && errors.Is(err, context.Canceled)
	if status >= 500 && !gone {
		s.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	switch status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Basic realm="tgr", charset="UTF-8"`)
		w.Header().Add("WWW-Authenticate", `Bearer realm="tgr"`)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "5")
	}
	return status
}

// json answers with v. It is encoded before the first byte is sent, so that a failure is an answer too.
func (s *Server) json(w http.ResponseWriter, r *http.Request, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		s.log.Error("encode answer", "path", r.URL.Path, "err", err)
		http.Error(w, `{"error":{"code":"internal","message":"internal error"}}`, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b.Bytes()) // an error means that the client has gone
}
