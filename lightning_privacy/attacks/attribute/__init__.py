"""Attribute inference: does the model betray what a record's sensitive attribute is?"""
