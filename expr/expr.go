// Package expr is the expression language of GitHub Actions, `${{ }}`: lexer, parser, static check and evaluator.
// It knows nothing of CI: contexts and functions come from the caller.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/expressions
package expr
