package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/infinite-llm/infinite/engine/openai"
)

const defaultServer = "127.0.0.1:8000"

// serverURL reads a --url.
func serverURL(text string) (string, error) {
	url, err := openai.ParseURL(text)
	if err != nil {
		return "", fmt.Errorf("cannot use --url: %w", err)
	}
	return url, nil
}

// flagError says in plain words what is wrong with a flag's value, for which Go's parsers name themselves.
func flagError(_ *cobra.Command, err error) error {
	var bad *pflag.InvalidValueError
	if !errors.As(err, &bad) {
		return err
	}
	wanted, known := map[string]string{
		"int": "a whole number", "uint32": "a whole number from 0", "uint64": "a whole number from 0", "float64": "a number such as 0.5",
		"intSlice": "a whole number or a list such as 1,4,16", "duration": "a duration such as 500ms or 10s", "bool": "true or false",
	}[bad.GetFlag().Value.Type()]
	if !known {
		return err
	}
	return fmt.Errorf("cannot use --%s: %q is not %s", bad.GetFlag().Name, bad.GetValue(), wanted)
}
