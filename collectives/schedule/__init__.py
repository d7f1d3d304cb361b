"""What a collective is: its specification, trees and forests, the verifier, the op, codecs and the fold order."""
