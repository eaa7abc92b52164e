package jinja

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// DecodeOrdered reads JSON: objects become a Dict, in the order of their keys, lists []any, and numbers json.Number.
func DecodeOrdered(data []byte) (any, error) { return decodeOrdered(data, 0) }

func decodeOrdered(data []byte, depth int) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := readOrdered(d, depth)
	if err != nil {
		return nil, fmt.Errorf("cannot read JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("cannot read JSON: there is more behind the value")
	}
	return v, nil
}

func readOrdered(d *json.Decoder, depth int) (any, error) {
	if depth > maxConvert {
		return nil, fmt.Errorf("nested more than %d deep", maxConvert)
	}
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := readOrdered(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = d.Token()
		return list, err
	case json.Delim('{'):
		dict := Dict{}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			v, err := readOrdered(d, depth+1)
			if err != nil {
				return nil, err
			}
			dict = append(dict, Item{key.(string), v}) // the decoder takes nothing else for a key
		}
		_, err = d.Token()
		return dict, err
	}
	return token, nil
}
