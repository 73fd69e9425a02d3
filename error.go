package tgr

import (
	"errors"
	"fmt"
)

// Code says what kind of thing went wrong, at the boundary of a room. One table maps codes to HTTP statuses.
type Code string

// The codes. Invalid and Unauthorized are the caller's fault, Workflow the workflow file's, the rest ours.
const (
	Invalid      Code = "invalid"      // the request makes no sense
	Unauthorized Code = "unauthorized" // no credentials, or the wrong ones
	NotFound     Code = "not_found"    // there is no such thing
	Conflict     Code = "conflict"     // the state does not allow it: a stale token, a finished run
	Workflow     Code = "workflow"     // the workflow file is wrong; the message says where
	Unavailable  Code = "unavailable"  // a part we need does not answer; trying again may help
	Limit        Code = "limit"        // a bound was reached
	Internal     Code = "internal"     // a bug, or a machine that failed
)

// Error is the error that crosses the boundary of a room. Message is for the user; Err is for the operator.
type Error struct {
	Op      string // what was being done: "source.fetch"
	Code    Code
	Message string // a sentence that names the thing, without the operation
	Err     error  // the cause, or nil; not part of Message

	said error // a cause that Message includes already
}

// Error puts the operation, the message and the cause in one line.
func (e *Error) Error() string {
	s := e.Op
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error {
	if e.Err != nil {
		return e.Err
	}
	return errors.Unwrap(e.said)
}

// Errorf makes an Error; the format may use %w for its cause, which the message then includes.
func Errorf(op string, code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Op: op, Code: code, Message: err.Error(), said: err}
}

// CodeOf returns the code of the first Error in err's chain, "" for nil and Internal for any other error.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// MessageOf returns what a user may read of err: the message of the first Error in its chain.
// For any other error it returns a sentence that gives nothing away.
func MessageOf(err error) string {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) && e.Message != "" {
		return e.Message
	}
	return "internal error"
}

// Blame says whose fault a failure is.
type Blame string

// The three that can be blamed. The zero value means that nothing failed.
const (
	BlameUser     Blame = "user"     // a step's exit status
	BlameWorkflow Blame = "workflow" // the workflow file
	BlameOurs     Blame = "ours"     // boot, network, a bug: retried within a budget, never shown as "your test failed"
)

// BlameOf derives the blame from a code.
func BlameOf(err error) Blame {
	switch CodeOf(err) {
	case "":
		return ""
	case Workflow, Invalid:
		return BlameWorkflow
	default:
		return BlameOurs
	}
}
