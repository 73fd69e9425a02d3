package results

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/terraphim/tgr"
)

// maxJSON bounds the body of a call: ten keys of 512 characters are far less.
const maxJSON = 64 << 10

// statuses maps the codes of errors to what HTTP, Twirp and block blobs call them.
func statusOf(code tgr.Code) (status int, twirp, azure string) {
	switch code {
	case tgr.Invalid, tgr.Workflow:
		return http.StatusBadRequest, "invalid_argument", "InvalidInput"
	case tgr.Unauthorized:
		return http.StatusUnauthorized, "unauthenticated", "AuthenticationFailed"
	case tgr.NotFound:
		return http.StatusNotFound, "not_found", "BlobNotFound"
	case tgr.Conflict:
		return http.StatusConflict, "already_exists", "InvalidOperation"
	case tgr.Limit:
		return http.StatusRequestEntityTooLarge, "resource_exhausted", "RequestBodyTooLarge"
	case tgr.Unavailable:
		return http.StatusServiceUnavailable, "unavailable", "ServerBusy"
	}
	return http.StatusInternalServerError, "internal", "InternalError"
}

// deniedError is a request that the job's rights do not cover. Clients go by the beginning of its text.
type deniedError struct{ message string }

// Error returns the message.
func (e *deniedError) Error() string { return e.message }

// answer sends JSON. It fails as a handler does, for brevity; a client that is gone is no error.
func answer(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b)
	return nil
}

// fail sends an error in the words that all of GitHub's clients understand: Twirp's code and msg, and v1's message.
func fail(w http.ResponseWriter, err error) {
	var denied *deniedError
	if errors.As(err, &denied) {
		answer(w, http.StatusForbidden, map[string]string{"code": "permission_denied", "msg": denied.message, "message": denied.message})
		return
	}
	status, code, _ := statusOf(tgr.CodeOf(err))
	message := tgr.MessageOf(err)
	answer(w, status, map[string]string{"code": code, "msg": message, "message": message})
}

// failBlob sends an error as Azure does.
func failBlob(w http.ResponseWriter, err error) {
	status, _, code := statusOf(tgr.CodeOf(err))
	var b bytes.Buffer
	b.WriteString(xml.Header + "<Error><Code>" + code + "</Code><Message>")
	xml.EscapeText(&b, []byte(tgr.MessageOf(err)))
	b.WriteString("</Message></Error>")
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("X-Ms-Error-Code", code)
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

// log notes an error that is ours.
func (x *Session) log(r *http.Request, err error) {
	var denied *deniedError
	if code := tgr.CodeOf(err); (code == tgr.Internal || code == tgr.Unavailable) && !errors.As(err, &denied) && r.Context().Err() == nil {
		x.s.cfg.Log.Error("service of a job", "job", x.job.ID, "method", r.Method, "path", clip(r.URL.Path, 200), "error", err)
	}
}

// body reads a small body.
func body(r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxJSON+1))
	if err != nil {
		return nil, tgr.Errorf("results", tgr.Invalid, "the request's body ended early: %w", err)
	}
	if len(b) > maxJSON {
		return nil, tgr.Errorf("results", tgr.Limit, "the request's body is larger than %d bytes", maxJSON)
	}
	return b, nil
}

// isJSON reports whether a request's body is JSON by its own words.
func isJSON(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "application/json"
}

// decode reads a JSON object into v, whose names are those of the protocol's fields. As with all of protobuf's JSON,
// names may be in camel case too, and what is unknown is passed over.
func decode(b []byte, v any) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return tgr.Errorf("results", tgr.Invalid, "the request is no JSON object: %w", err)
	}
	named := make(map[string]json.RawMessage, len(fields))
	for name, value := range fields {
		if snake := snakeCase(name); snake == name || fields[snake] == nil {
			named[snake] = value
		}
	}
	b, err := json.Marshal(named)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return tgr.Errorf("results", tgr.Invalid, "the request has a field of another type: %w", err)
	}
	return nil
}

func snakeCase(name string) string {
	var b strings.Builder
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			b.WriteByte('_')
			c += 'a' - 'A'
		}
		b.WriteRune(c)
	}
	return b.String()
}

// number is an int64 as protobuf's JSON has it: a string, and from some a number.
type number int64

// UnmarshalJSON reads either.
func (n *number) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	if text == "null" || text == "" {
		return nil
	}
	v, err := strconv.ParseInt(text, 10, 64)
	*n = number(v)
	return err
}

// MarshalJSON writes a string.
func (n number) MarshalJSON() ([]byte, error) {
	return []byte(`"` + strconv.FormatInt(int64(n), 10) + `"`), nil
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
